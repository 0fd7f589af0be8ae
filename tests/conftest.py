from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from clusters import VERSIONS, Cluster, Clusters, Database
from engine import wait_until


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pg",
        default=",".join(map(str, VERSIONS)),
        metavar="15,16",
        help="the Postgres versions to test on; all by default",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Ended by SIGTERM, the tests still stop their servers.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config.addinivalue_line("markers", "pg(*versions): the Postgres versions that have what the test needs")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"cluster", "own_cluster", "preparing_cluster"} & set(metafunc.fixturenames):
        marker = metafunc.definition.get_closest_marker("pg")
        versions = marker.args if marker is not None else VERSIONS
        metafunc.parametrize("pg_version", versions, ids=[f"pg{version}" for version in versions], scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = {int(version) for version in config.getoption("--pg").split(",")}
    unwanted = []
    for item in items:
        version = (
            item.callspec.params.get("pg_version")
            if isinstance(item, pytest.Function) and hasattr(item, "callspec")
            else None
        )
        if version is not None and version not in wanted:
            unwanted.append(item)
    if unwanted:
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item not in set(unwanted)]


@pytest.fixture(scope="session")
def clusters() -> Iterator[Clusters]:
    clusters = Clusters()
    yield clusters
    clusters.close()


@pytest.fixture(scope="session")
def cluster(clusters: Clusters, pg_version: int) -> Iterator[Cluster]:
    """A running server of each Postgres version in turn; tests share it."""
    with clusters.running(pg_version) as cluster:
        # Recovery gives workers time after a start.
        with cluster.connect() as conn:
            wait_until(conn, "select pg_postmaster_start_time() < clock_timestamp() - interval '2 seconds'")
        yield cluster


@pytest.fixture
def own_cluster(clusters: Clusters, pg_version: int) -> Iterator[Cluster]:
    """A server of its own for a test that kills or reconfigures it."""
    with clusters.running(pg_version) as cluster:
        yield cluster


@pytest.fixture
def db(cluster: Cluster) -> Iterator[Database]:
    """A fresh database with the extension in it."""
    database = cluster.create_database()
    yield database
    database.drop()


@pytest.fixture(scope="session")
def preparing_cluster(clusters: Clusters, pg_version: int) -> Iterator[Cluster]:
    """A server that can prepare transactions, where those of users do not ring."""
    with clusters.running(pg_version) as cluster:
        with cluster.connect() as conn:
            conn.execute("alter system set max_prepared_transactions = 100")
        cluster.stop()
        cluster.start()
        yield cluster


@pytest.fixture
def preparing_db(preparing_cluster: Cluster) -> Iterator[Database]:
    """A fresh database of such a server."""
    database = preparing_cluster.create_database()
    yield database
    database.drop()
