// What the code of a workflow calls. All of it is a step: done once, and remembered when the workflow is replayed.
import { setImmediate as turn, setTimeout as after } from "node:timers/promises";
import { ChildFailed, StepFailed, WaitTimedOut, errorJson, isConnectionLost, isNotOurs } from "./errors.js";

// How often a wait is asked for while steps are under way beside it, in milliseconds.
const POLL = 500;
// The code of a workflow that this worker may not go on with awaits this for ever, and is garbage then. An error instead
// would meet the handlers of the workflow.
const never = () => new Promise(() => {});
// pg would send an array as an array of Postgres, and a text as it is. SQL NULL for nothing at all.
const json = (value) => (value === undefined ? null : JSON.stringify(value));

/**
 * One run of a workflow. Steps are matched by name, and a second call of a name is `name#2`: so the code must make the
 * same calls in the same order on each run, and do nothing outside of steps that could turn out otherwise.
 */
export class Context {
  #worker;
  #stored;
  #counts = new Map();
  #active = 0;
  #leaving = new AbortController();

  constructor(worker, { workflow_id, lease, attempt, steps }) {
    this.#worker = worker;
    this.workflowId = workflow_id;
    this.lease = lease;
    this.attempt = attempt;
    this.#stored = new Map((steps ?? []).map((step) => [step.step_name, step]));
    /** Resolves when this run is over before its end: parked, taken away, cancelled, given back. */
    this.left = new Promise((resolve) => this.signal.addEventListener("abort", resolve));
  }

  /** Aborted when the workflow is cancelled or taken away: a long step stops then, if it can. */
  get signal() {
    return this.#leaving.signal;
  }

  /** Ends this run, for a reason if it is not the workflow's own doing. */
  leave(reason) {
    if (reason && !this.signal.aborted) console.error(`workflow ${this.workflowId}: stopped: ${reason}`);
    this.#leaving.abort();
    return never();
  }

  /** At least once: `body(key, signal)`, with a key that is the same each time, for whatever is called outside. */
  step(name, body, retry) {
    return this.#perform(this.#unique(name), retry, async (step) => {
      const output = await body(`${this.workflowId}/${step}`, this.signal);
      // What is stored counts: it is another worker's, if that one was first.
      return (await this.#call("select durable.checkpoint($1, $2, $3, $4) as output", step, json(output)))[0].output;
    });
  }

  /** Exactly once: the SQL of `body(client)` is committed together with the checkpoint. */
  transaction(name, body, retry) {
    return this.#perform(this.#unique(name), retry, (step) => this.#transact(step, body));
  }

  /** `duration` is an interval of Postgres: "3 days". Nobody is held meanwhile. */
  async sleep(duration) {
    await this.#wait(this.#unique("sleep"), [], duration);
  }

  /** The next message of a topic. Throws WaitTimedOut. */
  async receive(topic, { timeout } = {}) {
    return (await this.#wait(this.#unique(`receive:${topic}`), [{ message: topic }], timeout)).value;
  }

  /** Starts a workflow, waits for its end and gives its output. Throws ChildFailed. */
  async child(workflow, input) {
    return (await this.children(workflow, [input]))[0];
  }

  /** The same for many, at most `maxParallel` at a time; their outputs in the order of the inputs. */
  async children(workflow, inputs, { queue, maxParallel } = {}) {
    const step = this.#unique(`run:${workflow}`);
    const { first } = await this.#perform(step, {}, async () => {
      const start = "select durable.start_children($1, $2, $3, $4, $5, queue => $6, max_parallel => $7) as first";
      const texts = inputs.map((input) => json(input ?? null));
      return (await this.#call(start, step, workflow, texts, queue, maxParallel))[0];
    });
    const { value } = await this.#wait(`${step}/result`, [{ children: first }]);
    const [failed] = Object.values(value.failed);
    if (failed) throw new ChildFailed(`${step}/result`, failed.error);
    if (value.outputs) return value.outputs;
    // Outputs that are large together stay with the children.
    const results = await this.#worker.query("select output from durable.child_results($1)", first);
    return results.map(({ output }) => output);
  }

  /**
   * Asks people and waits for the decision: `{ decision, by, comment, data, expired, … }`. `decision` is "approved",
   * "rejected" or another word, and null when it has expired: what comes of that is for the workflow to say.
   */
  async approval(subject, { assignee, form, expires } = {}) {
    const step = this.#unique("approval");
    this.#active += 1;
    const request = "select durable.request_approval($1, $2, $3, $4, $5, $6, $7)";
    // Where the wait was begun, the request was made.
    if (!this.#stored.has(step)) await this.#call(request, step, subject, assignee, json(form), expires);
    this.#active -= 1;
    return (await this.#wait(step, [{ approval: step }])).value;
  }

  #unique(name) {
    const count = (this.#counts.get(name) ?? 0) + 1;
    this.#counts.set(name, count);
    return count === 1 ? name : `${name}#${count}`;
  }

  async #perform(step, { maxAttempts = 1, initial = "1 second", backoff = 2 } = {}, run) {
    const stored = this.#stored.get(step);
    if (stored && stored.status !== "running") return this.#recall(step, stored);
    this.#active += 1;
    // An attempt before a crash counts, and so does the pause after it.
    if (stored) await after(stored.retry_in_ms ?? 0);
    for (let attempt = stored?.attempt ?? 1; ; attempt += 1) {
      if (this.signal.aborted) return never();
      try {
        const output = await run(step);
        this.#active -= 1;
        return output;
      } catch (error) {
        const report =
          "select 1000 * extract(epoch from durable.fail_step($1, $2, $3, $4, $5, $6, $7, $8))::float8 as pause";
        const [{ pause }] = await this.#call(report, step, errorJson(error), attempt, maxAttempts, initial, backoff);
        if (pause === null) {
          this.#active -= 1;
          throw new StepFailed(step, JSON.parse(errorJson(error)));
        }
        await after(pause);
      }
    }
  }

  async #transact(step, body) {
    for (;;) {
      let client;
      let inBody = false;
      let committed = false;
      try {
        client = await this.#worker.connect();
        await client.query("begin");
        // Holds the lease until the end of the transaction, so that nobody takes the workflow over in between.
        await client.query("select durable.begin_step($1, $2, $3)", [this.workflowId, this.lease, step]);
        inBody = true;
        const output = json(await body(client));
        inBody = false;
        const values = [this.workflowId, this.lease, step, output];
        const { rows } = await client.query("select durable.checkpoint($1, $2, $3, $4) as output", values);
        await client.query("commit");
        committed = true;
        return rows[0].output;
      } catch (error) {
        if (!inBody && isNotOurs(error)) return this.leave(error.message);
        // Done already: the answer to a commit was lost.
        if (!inBody && error.code === "WF008") return this.#recall(step, { omitted: true });
        // Also a serialization failure and a deadlock are for another try.
        if (!isConnectionLost(error) && !["40001", "40P01"].includes(error.code)) throw error;
        await after(100);
      } finally {
        // A connection in an open transaction is closed, which rolls it back.
        client?.release(!committed);
      }
    }
  }

  async #wait(step, conditions, timeout) {
    const stored = this.#stored.get(step);
    let output = stored && stored.status !== "running" ? await this.#recall(step, stored) : undefined;
    // Steps that are started beside this wait, in a Promise.all(), are to be counted.
    if (output === undefined) await turn();
    while (output === undefined) {
      const wait = "select * from durable.wait($1, $2, $3, $4, $5, park => $6)";
      const [answer] = await this.#call(wait, step, json(conditions), timeout, this.#active === 0);
      if (answer.outcome === "parked") {
        // What came while it was parked need not wait for the next tick.
        await this.#worker.query("select durable.recheck_waits($1)", [this.workflowId]);
        return this.leave();
      }
      // Not over and not parked: ask again.
      if (answer.outcome === "waiting") await after(POLL);
      else output = answer.output;
    }
    if (output?.timed_out) throw new WaitTimedOut(`${step}: nothing came within ${timeout}`);
    return output;
  }

  async #recall(step, stored) {
    const fetch = "select * from durable.step_result($1, $2)";
    if (stored.omitted) [stored] = await this.#worker.query(fetch, this.workflowId, step);
    if (stored.status === "error") throw new StepFailed(step, stored.error);
    return stored.output;
  }

  async #call(query, ...values) {
    if (this.signal.aborted) return never();
    try {
      return await this.#worker.query(query, this.workflowId, this.lease, ...values);
    } catch (error) {
      if (isNotOurs(error)) return this.leave(error.message);
      throw error;
    }
  }
}
