// The example from its start to its end: workers of orders.js, a customer, somebody who decides, and a crash.
// DURABLE_DSN=postgresql://… node story.js
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { setTimeout as after } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import pg from "pg";

const database = new pg.Client({ connectionString: process.env.DURABLE_DSN });
await database.connect();
database.on("notice", () => {});
await database.query(await readFile(new URL("schema.sql", import.meta.url), "utf8"));

const program = fileURLToPath(new URL("orders.js", import.meta.url));
const startWorker = () => spawn(process.execPath, [program], { stdio: "inherit" });
let worker = startWorker();
process.on("exit", () => worker.kill("SIGKILL"));

/** The first row of a query, once it has one. */
async function until(query, ...values) {
  for (const giveUp = Date.now() + 60_000; Date.now() < giveUp; await after(50)) {
    const { rows } = await database.query(query, values);
    if (rows.length > 0) return rows[0];
  }
  throw new Error(`this did not come true within a minute: ${query}`);
}

console.log("An order comes in. It and its workflow are one transaction.");
const order = { order_id: "A-7", sku: "chair" };
await database.query("begin");
const enqueue = "select durable.enqueue('deliver', $1, queue => 'demo_node') as id";
const [{ id }] = (await database.query(enqueue, [order])).rows;
await database.query("insert into demo_node.orders values ($1, $2, 12500, $3)", [order.order_id, order.sku, id]);
await database.query("commit");

const workflow = "select * from durable.workflows where workflow_id = $1";
const parked = await until(`${workflow} and status = 'waiting'`, id);
console.log(`It is ${parked.status} for the payment: one row, held by ${parked.worker ?? "nobody"}. The customer pays.`);
await database.query("select durable.send($1, 'payment', $2, key => 'payment-1')", [id, { cents: 12500 }]);

const asked = await until("select * from durable.approvals where workflow_id = $1 and state = 'pending'", id);
console.log(`Somebody in sales is asked: ${asked.subject} They approve.`);
await database.query("select durable.decide($1, 'approved', by => 'ada')", [asked.approval_id]);

await until("select from demo_node.requests");
console.log("While the carrier is being asked, the worker is killed. Another one goes on behind the last step.");
worker.kill("SIGKILL");
await once(worker, "exit");
worker = startWorker();

const ended = await until(`${workflow} and completed_at is not null`, id);
console.log(`It is ${ended.status} at attempt ${ended.attempt}, with ${ended.crashes} crash.`);
for (const step of (await database.query("select * from durable.history($1)", [id])).rows) {
  console.log(`  ${step.step_name.padEnd(20)} ${step.status}  ${JSON.stringify(step.output).slice(0, 80)}`);
}
const count = async (table) => (await database.query(`select count(*) from demo_node.${table}`)).rows[0].count;
const [requests, parcels] = [await count("requests"), await count("parcels")];
console.log(`The carrier was asked ${requests} times, with the same key, and has booked ${parcels} parcel.`);

worker.kill("SIGTERM");
const [code] = await once(worker, "exit");
await database.end();
process.exit(code);
