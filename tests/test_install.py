from __future__ import annotations

from clusters import Cluster, Database


def test_create_extension_gives_the_version_of_the_control_file(db: Database) -> None:
    with db.connect() as conn:
        row = conn.execute(
            "select extversion, durable.version() from pg_extension where extname = 'durable'"
        ).fetchone()
    assert row is not None
    assert row[0] == row[1]


def test_an_enqueued_workflow_outlives_a_killed_server(own_cluster: Cluster) -> None:
    db = own_cluster.create_database()
    db.connect().execute("select durable.enqueue('greet', '{}', key => 'k')")
    own_cluster.kill()
    own_cluster.start()
    claimed = db.connect().execute("select name, input from durable.claim('w')").fetchall()
    assert claimed == [("greet", {})]
