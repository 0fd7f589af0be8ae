// A worker: claims workflows, runs their code, and tells the database that it lives.
import { randomUUID } from "node:crypto";
import { hostname } from "node:os";
import { setTimeout as after } from "node:timers/promises";
import pg from "pg";
import { Context } from "./context.js";
import { errorJson, isConnectionLost, isNotOurs } from "./errors.js";

// The schema that this was written for: the first two numbers of its version.
const FITS = "0.1";
// A bell is rung for an idle worker when there is something to do; it can be lost, so the worker looks all the same.
const POLL = 3000;

const pause = (ms, signal) => after(ms, undefined, { signal }).catch(() => {});
const backOff = (tries) => Math.min(2000, 50 * 2 ** tries) * (0.5 + Math.random() / 2);

export class Worker {
  // Unique among the living: the database tells workers apart by their names.
  name = `${hostname()}:${process.pid}:${randomUUID().slice(0, 8)}`;
  #connection;
  #queues;
  #concurrency;
  #drain;
  #pool;
  #workflows = new Map();
  // What this worker holds: the contexts by the ids of their workflows.
  #runs = new Map();
  #stopping = new AbortController();
  #gone = new AbortController();
  #idle = false;
  #rung = false;
  #wake = () => {};

  /** `drain`: for how many milliseconds workflows may go on after stop(), before they are given back. */
  constructor({ connectionString, queues = ["default"], concurrency = 10, drain = 20_000 } = {}) {
    // Without a connection string pg goes by PGHOST and its like.
    this.#connection = { connectionString, application_name: this.name, keepAlive: true };
    this.#queues = queues;
    this.#concurrency = concurrency;
    this.#drain = drain;
    this.#pool = new pg.Pool({ ...this.#connection, max: concurrency });
    // Whoever uses the connection is told, too; unheard, it would end the process.
    this.#pool.on("connect", (client) => client.on("error", () => {}));
    this.#pool.on("error", () => {});
  }

  /** `body(context, input)` is the code of the workflows of this name. */
  define(workflow, body) {
    this.#workflows.set(workflow, body);
  }

  /** Works until stop(). */
  async run() {
    const [{ version }] = await this.query("select durable.version() as version");
    if (version.split(".").slice(0, 2).join(".") !== FITS) throw new Error(`schema ${version} is not for this client`);
    const lease = "select extract(epoch from value::interval)::float8 as seconds from durable.settings where name = 'lease'";
    const [{ seconds }] = await this.query(lease);
    // The heartbeat needs the event loop: do not block it for as long as that.
    const beside = Promise.all([this.#keepSession((1000 * seconds) / 3), this.#tick()]);
    await Promise.race([this.#work(), beside]);

    await Promise.race([this.#untilEmpty(), after(this.#drain)]);
    for (const context of this.#runs.values()) context.leave();
    // Gives back what is still held, for others to go on with at once.
    await Promise.race([this.query("select durable.leave($1)", this.name), after(2000)]);
    this.#gone.abort();
    await beside.catch(() => {});
    await Promise.race([this.#pool.end(), after(2000)]);
  }

  /** Claims nothing more, and lets run() end when what runs has ended or the drain time is over. */
  stop() {
    this.#stopping.abort();
    this.#ring();
  }

  /** The rows of a query; sent again when the connection was lost. */
  async query(query, ...values) {
    for (let tries = 0; ; tries += 1) {
      try {
        return (await this.#pool.query(query, values)).rows;
      } catch (error) {
        if (!isConnectionLost(error) || this.#gone.signal.aborted) throw error;
        await pause(backOff(tries), this.#gone.signal);
      }
    }
  }

  /** A connection, to be released. */
  connect() {
    return this.#pool.connect();
  }

  async #work() {
    while (!this.#stopping.signal.aborted) {
      this.#rung = false;
      const free = this.#concurrency - this.#runs.size;
      const known = [...this.#workflows.keys()];
      const claim = "select * from durable.claim($1, $2, $3, $4)";
      const claimed = free > 0 ? await this.query(claim, this.name, this.#queues, free, known) : [];
      for (const row of claimed) this.#start(row);
      if (claimed.length > 0) {
        this.#idle = false;
      } else if (free > 0 && !this.#idle) {
        // What is enqueued from now on rings; what came before is found by claiming once more.
        await this.query("select durable.idle($1, $2, $3)", this.name, this.#queues, known);
        this.#idle = true;
      } else {
        // A claim whose answer was lost gave us what we do not know of.
        const strays = await this.query("select * from durable.reclaim($1, $2)", this.name, [...this.#runs.keys()]);
        for (const row of strays) this.#start(row);
        await this.#untilRung(POLL);
      }
    }
  }

  async #start(claimed) {
    const { workflow_id: id, lease, name, input } = claimed;
    const context = new Context(this, claimed);
    // Claimed again: the run before lost its lease or, most often, has parked and was woken before the answer that says so.
    this.#runs.get(id)?.leave();
    this.#runs.set(id, context);
    try {
      const output = await Promise.race([this.#workflows.get(name)(context, input), context.left]);
      const complete = "select durable.complete($1, $2, $3)";
      if (!context.signal.aborted) await this.query(complete, id, lease, JSON.stringify(output ?? null));
    } catch (error) {
      await this.#fail(id, lease, name, error);
    } finally {
      if (this.#runs.get(id) === context) this.#runs.delete(id);
      this.#ring();
    }
  }

  async #fail(id, lease, name, error) {
    try {
      // Tried again while its max_attempts are not reached, from the last checkpoint.
      await this.query("select durable.fail($1, $2, $3)", id, lease, errorJson(error));
      console.error(`workflow ${id} (${name}) failed:`, error);
    } catch (refused) {
      if (!isNotOurs(refused)) console.error(`workflow ${id} (${name}): its failure cannot be stored:`, refused);
    }
  }

  /** The session by which the database sees that this process lives, and over which it calls. */
  async #keepSession(every) {
    for (let tries = 0; !this.#gone.signal.aborted; tries += 1) {
      const client = new pg.Client({ ...this.#connection, connectionTimeoutMillis: every, query_timeout: every });
      const lost = new Promise((_, reject) => client.on("error", reject));
      lost.catch(() => {});
      client.on("notification", ({ payload }) => {
        // Something it runs was cancelled or timed out, or there is something to claim.
        if (payload === "cancel") this.#beat(client).catch(() => {});
        else this.#ring();
      });
      try {
        await client.connect();
        for (let channel; !this.#gone.signal.aborted; tries = 0) {
          await this.#beat(client);
          // Takes a lock that is gone with this session: when the process is killed, others go on at once with what it
          // held. Each time, for a worker that was taken for dead comes back under a new number, with a new channel.
          const { rows } = await client.query("select durable.attach($1, $2) as channel", [this.name, this.#queues]);
          if (rows[0].channel !== channel) {
            ({ channel } = rows[0]);
            await client.query(`listen ${client.escapeIdentifier(channel)}`);
            this.#idle = false;
            this.#ring();
          }
          await Promise.race([pause(every, this.#gone.signal), lost]);
        }
      } catch (error) {
        if (!isConnectionLost(error)) throw error;
        console.error(`worker ${this.name}: its session is lost, connecting again: ${error.message}`);
        await pause(backOff(tries), this.#gone.signal);
      } finally {
        await client.end().catch(() => {});
      }
    }
  }

  /** Renews the lease on all that is held, and stops what the database says is not held any more. */
  async #beat(client) {
    const held = new Map(this.#runs);
    const leases = [...held.values()].map((context) => context.lease);
    const heartbeat = "select * from durable.heartbeat($1, $2, $3)";
    const { rows } = await client.query(heartbeat, [this.name, [...held.keys()], leases]);
    for (const { workflow_id: id, reason } of rows) {
      held.get(id).leave(reason === "WF004" ? "it was cancelled" : "it was taken away, paused, or has ended");
    }
  }

  /** Takes a turn, now and then, at what time demands: the workers of a database share it. */
  async #tick() {
    while (!this.#gone.signal.aborted) {
      const [{ report }] = await this.query("select durable.tick(worker => $1) as report", this.name);
      for (const [part, done] of Object.entries(report)) if (done?.error) console.error(`${part} failed:`, done.error);
      await pause(Math.max(20, Math.min(report.turn_in_ms, report.next_in_ms ?? Infinity)), this.#gone.signal);
    }
  }

  async #untilEmpty() {
    while (this.#runs.size > 0) {
      this.#rung = false;
      await this.#untilRung(POLL);
    }
  }

  #ring() {
    this.#rung = true;
    this.#wake();
  }

  #untilRung(atMost) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, this.#rung ? 0 : atMost);
      this.#wake = () => resolve(clearTimeout(timer));
    });
  }
}
