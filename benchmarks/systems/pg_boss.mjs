// node pg_boss.mjs DSN WARM_UP BATCHES BATCH INPUT OUTPUT: sends, fetches and completes batches on one connection, and
// prints how many jobs are completed, and the seconds that it took after the warm-up.
import { PgBoss } from "pg-boss";

const [, , connectionString, warmUp, batches, batch, input, output] = process.argv;
const QUEUE = "orders";

const boss = new PgBoss({ connectionString, max: 1, supervise: false, schedule: false });
await boss.start();
await boss.createQueue(QUEUE);
const jobs = Array.from({ length: Number(batch) }, () => ({ data: JSON.parse(input) }));
const result = JSON.parse(output);

async function work(count) {
  for (let n = 0; n < count; n += 1) {
    await boss.insert(QUEUE, jobs);
    const fetched = await boss.fetch(QUEUE, { batchSize: jobs.length });
    await boss.complete(QUEUE, fetched.map((job) => job.id), result);
  }
}

await work(Number(warmUp));
const startedAt = performance.now();
await work(Number(batches));
const seconds = (performance.now() - startedAt) / 1000;
const sql = "select count(*)::int as n from pgboss.job where state = 'completed'";
const { rows } = await boss.getDb().executeSql(sql);
await boss.stop();
console.log(JSON.stringify({ seconds, completed: rows[0].n }));
