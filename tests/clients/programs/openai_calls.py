"""What a program with the openai library does: ``URL KEY``. Prints what came of it as one JSON object."""

import asyncio
import json
import sys

import openai

URL, KEY = sys.argv[1:]
OPTIONS = {"base_url": f"{URL}/v1", "max_retries": 0, "timeout": 30.0}
HELLO = [{"role": "user", "content": "hello"}]


def sync_calls() -> dict[str, object]:
    with openai.OpenAI(api_key=KEY, **OPTIONS) as client:
        chats = client.chat.completions

        def chat(model: str) -> str | None:
            return chats.create(model=model, messages=HELLO, max_tokens=8).choices[0].message.content

        seen: dict[str, object] = {"models": [model.id for model in client.models.list()], "chat": chat("a")}
        with chats.create(model="a", messages=HELLO, max_tokens=8, stream=True) as stream:
            seen["stream"] = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        with chats.create(model="a", messages=HELLO, max_tokens=500, stream=True) as stream:
            seen["left early"] = next(iter(stream)).choices[0].delta.role
        seen["in turn"] = [chat(model) for model in "abab"]
        response = client.responses.create(model="a", input="hello", max_output_tokens=8)
        seen["response"] = response.output_text
        with client.responses.create(model="a", input="hello", max_output_tokens=8, stream=True) as events:
            seen["response stream"] = "".join(
                event.delta for event in events if event.type == "response.output_text.delta"
            )
        with client.responses.stream(model="b", input="hello", max_output_tokens=8) as events:
            final = events.until_done().get_final_response()
        seen["response at its end"] = [final.output_text, final.status, final.usage.output_tokens]
        with client.responses.create(model="a", input="hello", max_output_tokens=500, stream=True) as events:
            seen["response left early"] = next(iter(events)).type
        seen["adapter"] = [chat("sql"), client.models.retrieve("sql").parent]
        adapted = client.responses.create(model="sql", input="hello", max_output_tokens=8)
        seen["adapter's response"] = [adapted.model, adapted.output_text]
        # vLLM's raw bytes, so that what is not in the library's types counts too.
        seen["request id"] = chats.with_raw_response.create(
            model="a", messages=HELLO, max_tokens=1, extra_headers={"X-Request-Id": "mine"}
        ).headers["x-request-id"]
        seen["unknown model"] = raised(lambda: chat("nobody"))
        seen["unknown model retrieved"] = raised(lambda: client.models.retrieve("nobody"))
        seen["broken body"] = raised(lambda: client.post("/chat/completions", body=["a"], cast_to=object))
    with openai.OpenAI(api_key="wrong", **OPTIONS) as client:
        seen["wrong key"] = raised(client.models.list)
    return seen


def raised(call) -> list[object]:
    try:
        call()
    except openai.APIStatusError as error:
        return [type(error).__name__, error.code]
    return ["nothing was raised"]


async def async_calls() -> dict[str, object]:
    async with openai.AsyncOpenAI(api_key=KEY, **OPTIONS) as client:
        chats = client.chat.completions

        async def chat(model: str) -> str | None:
            return (await chats.create(model=model, messages=HELLO, max_tokens=8)).choices[0].message.content

        seen: dict[str, object] = {"models": [model.id async for model in client.models.list()]}
        async with await chats.create(model="b", messages=HELLO, max_tokens=8, stream=True) as stream:
            seen["stream"] = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        async with await chats.create(model="b", messages=HELLO, max_tokens=500, stream=True) as stream:
            seen["left early"] = (await anext(aiter(stream))).choices[0].delta.role
        seen["at once"] = await asyncio.gather(*(chat(model) for model in "abababab"))
        try:
            await chat("nobody")
        except openai.NotFoundError as error:
            seen["unknown model"] = error.code
    return seen


print(json.dumps({"sync": sync_calls(), "async": asyncio.run(async_calls())}))
