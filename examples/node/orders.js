// An app: its workflows, and a worker that runs them. DURABLE_DSN=postgresql://… node orders.js
import { bookParcel } from "./carrier.js";
import { WaitTimedOut } from "./errors.js";
import { Worker } from "./worker.js";

const worker = new Worker({ connectionString: process.env.DURABLE_DSN, queues: ["demo_node"] });

worker.define("deliver", async (context, order) => {
  const change = "update demo_node.stock set available = available + $2 where sku = $1";
  const changeStock = (step, by) =>
    context.transaction(step, async (client) => void (await client.query(change, [order.sku, by])));
  await changeStock("reserve", -1);
  // Time to think it over.
  await context.sleep("1 second");
  try {
    await context.receive("payment", { timeout: order.patience ?? "7 days" });
  } catch (error) {
    if (!(error instanceof WaitTimedOut)) throw error;
    await changeStock("put back", 1);
    return "cancelled: not paid";
  }
  const parcel = await context.child("pack", order);
  const question = { assignee: "sales", form: parcel, expires: "2 days" };
  const { decision, by } = await context.approval(`Ship order ${order.order_id}?`, question);
  if (decision !== "approved") {
    await changeStock("put back", 1);
    return "cancelled: not approved";
  }
  const tracking = await context.step("ship", (key, signal) => bookParcel(key, parcel, signal), { maxAttempts: 3 });
  return { parcel, tracking, approved_by: by };
});

// The workflow of a child may be anybody's, in any language: all that counts is its name and its queue.
worker.define("pack", async (context, order) => ({ box: `box of ${order.order_id}`, grams: 4200 }));

// Ends what runs, or gives it back, then leaves.
for (const signal of ["SIGTERM", "SIGINT"]) process.once(signal, () => worker.stop());
await worker.run();
process.exit();
