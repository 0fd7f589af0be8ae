"""The agent: one workflow that talks to a model, uses tools, and asks a person before money moves.

Run it with `durable worker examples.agent.support:app`.
"""

from __future__ import annotations

from durable_client import Context, Durable, Retry, StepFailed, current_step

from .model_api import Conversation, stream
from .tools import HARMLESS, refund, tool_call

app = Durable()

# Each turn costs tokens.
MOST_TURNS = 10


@app.step(retry=Retry(max_attempts=10, initial="100ms", max_delay="5s"), timeout="60s")
def ask_model(ctx: Context, conversation: Conversation) -> str:
    reply = ""
    # The same key however often a crash makes this step run: what the model has generated for it is not paid for again.
    for token in stream(conversation, key=current_step().idempotency_key):
        reply += token
        ctx.set("conversation", [*conversation, {"role": "assistant", "content": reply}])
    return reply


@app.workflow(queue="agent")
def answer(ctx: Context, question: str) -> str:
    conversation = [{"role": "user", "content": question}]
    for _ in range(MOST_TURNS):
        reply = ctx.step(ask_model, ctx, conversation)
        conversation.append({"role": "assistant", "content": reply})
        call = tool_call(reply)
        if call is None:
            return reply
        conversation.append({"role": "tool", "content": use_tool(ctx, *call)})
    raise RuntimeError(f"the model has not come to an end in {MOST_TURNS} turns")


def use_tool(ctx: Context, tool: str, arguments: dict[str, str]) -> str:
    try:
        if tool in HARMLESS:
            return ctx.step(HARMLESS[tool], **arguments)
        if tool == "refund":
            return send_money_back(ctx, arguments)
    except StepFailed as failure:
        # The model may do better with its next call.
        return f"{tool} failed: {failure.error['message']}"
    return f"there is no tool {tool!r}"


def send_money_back(ctx: Context, arguments: dict[str, str]) -> str:
    decision = ctx.approval("Send money back?", assignee="support lead", form=arguments, expires="7 days")
    if not decision.approved:
        return f"not refunded: {decision.comment or 'nobody has agreed'}"
    return ctx.transaction(refund, ctx.workflow_id, **arguments)
