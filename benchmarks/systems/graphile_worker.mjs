// node graphile_worker.mjs install DSN | work DSN SETTINGS | mark DSN FILE_DESCRIPTOR
import { writeSync } from "node:fs";
import { Logger, run, runMigrations } from "graphile-worker";
import pg from "pg";

const [, , verb, connectionString, given] = process.argv;
const logger = new Logger(() => (level, message) => level === "error" && console.error(message));
const POLL_MS = 5;

if (verb === "install") {
  await runMigrations({ connectionString, logger });
} else if (verb === "mark") {
  // With its default settings. The clock is the one of time.monotonic() in Python.
  const mark = ({ sample }) => {
    const at = Number(process.hrtime.bigint()) / 1e9;
    writeSync(Number(given), `${sample} ${process.pid} ${at}\n`);
  };
  const runner = await run({ connectionString, logger, parsedCronItems: [], taskList: { mark } });
  await runner.promise;
} else {
  const settings = JSON.parse(given);
  let startedAt;
  let completed = 0;
  const runner = await run({
    preset: {
      worker: {
        connectionString,
        concurrentJobs: settings.concurrentJobs,
        maxPoolSize: settings.maxPoolSize,
        localQueue: { size: settings["localQueue.size"] },
        completeJobBatchDelay: settings.completeJobBatchDelay,
        failJobBatchDelay: settings.completeJobBatchDelay,
        logger,
      },
    },
    parsedCronItems: [],
    taskList: {
      no_step: async (order) => {
        startedAt ??= performance.now();
        completed += 1;
        return void { payment: `pay-${order.order}`, cents: 1999 };
      },
    },
  });
  // When no job was started for a while, the end is near: the last of them are being deleted.
  const client = new pg.Client({ connectionString });
  await client.connect();
  let seen = -1;
  const timer = setInterval(async () => {
    if (completed === 0 || completed !== seen) {
      seen = completed;
      return;
    }
    const lookedAt = performance.now();
    const { rowCount } = await client.query("select from graphile_worker._private_jobs limit 1");
    if (rowCount === 0 && timer.hasRef()) {
      timer.unref();
      clearInterval(timer);
      await client.query("insert into drained values ($1, $2)", [completed, (lookedAt - startedAt) / 1000]);
    }
  }, POLL_MS);
  await runner.promise;
  await client.end();
}
