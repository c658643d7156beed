"""What a program with the anthropic library does: ``URL KEY``. Prints what came of it as one JSON object."""

import asyncio
import json
import sys

import anthropic

URL, KEY = sys.argv[1:]
OPTIONS = {"base_url": URL, "max_retries": 0, "timeout": 30.0}
HELLO = [{"role": "user", "content": "hello"}]


def raised(call):
    try:
        call()
    except anthropic.APIStatusError as error:
        body = error.body if isinstance(error.body, dict) else {}
        return [type(error).__name__, body.get("type"), (body.get("error") or {}).get("type")]
    return ["nothing was raised"]


def say(client, model):
    return client.messages.create(model=model, messages=HELLO, max_tokens=8).content[0].text


with anthropic.Anthropic(api_key=KEY, **OPTIONS) as client:
    seen = {"models": [model.id for model in client.models.list()], "chat": say(client, "a")}
    seen["in turn"] = [say(client, model) for model in "abab"]
    with client.messages.stream(model="a", messages=HELLO, max_tokens=8) as stream:
        seen["stream"] = "".join(stream.text_stream)
        seen["at its end"] = [stream.get_final_message().stop_reason, stream.get_final_message().usage.output_tokens]
    with client.messages.create(model="b", messages=HELLO, max_tokens=8, stream=True) as events:
        seen["events"] = list(dict.fromkeys(event.type for event in events))
    with client.messages.create(model="a", messages=HELLO, max_tokens=500, stream=True) as events:
        seen["left early"] = next(iter(events)).type
    seen["counted"] = client.messages.count_tokens(model="b", messages=HELLO, system="be brief").input_tokens
    seen["adapter"] = [say(client, "sql"), client.messages.count_tokens(model="sql", messages=HELLO).input_tokens]
    seen["unknown model"] = raised(lambda: say(client, "nobody"))
    seen["unknown model counted"] = raised(lambda: client.messages.count_tokens(model="nobody", messages=HELLO))
with anthropic.Anthropic(auth_token=KEY, api_key=None, **OPTIONS) as client:
    seen["bearer"] = say(client, "b")
with anthropic.Anthropic(api_key="wrong", **OPTIONS) as client:
    seen["wrong key"] = raised(lambda: say(client, "a"))


async def async_calls():
    async with anthropic.AsyncAnthropic(api_key=KEY, **OPTIONS) as client:
        async with client.messages.stream(model="b", messages=HELLO, max_tokens=8) as stream:
            said = "".join([piece async for piece in stream.text_stream])
        async with client.messages.stream(model="b", messages=HELLO, max_tokens=500) as stream:
            early = (await anext(aiter(stream))).type
    return [said, early]


seen["async stream"] = asyncio.run(async_calls())
print(json.dumps(seen))
