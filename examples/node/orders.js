// An app: its workflows, and a worker that runs them. DURABLE_DSN=postgresql://… node orders.js
import { bookParcel } from "./carrier.js";
import { WaitTimedOut } from "./errors.js";
import { Worker } from "./worker.js";

const worker = new Worker({ connectionString: process.env.DURABLE_DSN, queues: ["demo_node"] });

worker.define("deliver", async (context, order) => {
  const take = "update demo_node.stock set available = available - 1 where sku = $1";
  await context.transaction("reserve", async (client) => void (await client.query(take, [order.sku])));
  // Time to think it over.
  await context.sleep("1 second");
  try {
    await context.receive("payment", { timeout: order.patience ?? "7 days" });
  } catch (error) {
    if (!(error instanceof WaitTimedOut)) throw error;
    const putBack = "update demo_node.stock set available = available + 1 where sku = $1";
    await context.transaction("put back", async (client) => void (await client.query(putBack, [order.sku])));
    return "cancelled: not paid";
  }
  const parcel = await context.child("pack", order);
  const tracking = await context.step("ship", (key, signal) => bookParcel(key, parcel, signal), { maxAttempts: 3 });
  return { parcel, tracking };
});

// The workflow of a child may be anybody's, in any language: all that counts is its name and its queue.
worker.define("pack", async (context, order) => ({ box: `box of ${order.order_id}`, grams: 4200 }));

// Ends what runs, or gives it back, then leaves.
for (const signal of ["SIGTERM", "SIGINT"]) process.once(signal, () => worker.stop());
await worker.run();
process.exit();
