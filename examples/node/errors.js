// What may go wrong, for workflows to handle, and what the worker must know of errors.
import pg from "pg";

/** A step failed for good. `step` is its name, `error` what is stored of it. A replay throws the same. */
export class StepFailed extends Error {
  name = "StepFailed";
  constructor(step, error) {
    super(error.message);
    this.step = step;
    this.error = error;
  }
}

/** A child failed or was cancelled. */
export class ChildFailed extends StepFailed {
  name = "ChildFailed";
}

/** What a workflow waited for did not come in time. */
export class WaitTimedOut extends Error {
  name = "WaitTimedOut";
  code = "WF014";
}

/** The workflow is not this worker's any more: not found, taken over or ended, cancelled. Its code must stop. */
export const isNotOurs = (error) => ["WF001", "WF002", "WF004"].includes(error?.code);

/** Whether a call may be sent again, for its connection was lost: all calls of the worker are safe to repeat. */
export function isConnectionLost(error) {
  if (error instanceof pg.DatabaseError) return /^(08|57P0[123]|53300)/.test(error.code);
  // Of the system (ECONNRESET, say), or what pg says of a connection that has ended.
  return /^E(?!RR_)/.test(error?.code) || /connection terminated|timeout|not queryable/i.test(error?.message);
}

/** An error as the JSON that is stored; `step` lets a retry of the workflow run the failed step again. */
export function errorJson(error) {
  const text = (value, most) => value && String(value).slice(0, most).replace(/[\0\p{Cs}]/gu, "\ufffd");
  return JSON.stringify({
    type: text(error?.error?.type ?? error?.name ?? typeof error, 200),
    message: text(error?.message ?? String(error), 2000) ?? "",
    traceback: text(error?.stack, 8000),
    code: /^WF/.test(error?.code) ? error.code : undefined,
    step: error?.step,
  });
}
