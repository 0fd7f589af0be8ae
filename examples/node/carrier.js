// Plays a carrier's service, which takes its time. It notes each request, and books one parcel for a key.
import { setTimeout as after } from "node:timers/promises";
import pg from "pg";

const database = new pg.Pool({ connectionString: process.env.DURABLE_DSN, max: 2 });
// Of a connection that nobody uses just then; unheard, it would end the process.
database.on("error", () => {});

export async function bookParcel(key, parcel, signal) {
  await database.query("insert into demo_node.requests (key, pid) values ($1, $2)", [key, process.pid]);
  await after(1000, undefined, { signal });
  const book = "insert into demo_node.parcels (key, grams) values ($1, $2) on conflict do nothing";
  await database.query(book, [key, parcel.grams]);
  const { rows } = await database.query("select 'TN-' || number as tracking from demo_node.parcels where key = $1", [key]);
  return rows[0].tracking;
}
