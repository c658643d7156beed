"""What a program with the anthropic library does: ``URL KEY``. Prints what came of it as one JSON object."""

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
    seen["unknown model"] = raised(lambda: say(client, "nobody"))
with anthropic.Anthropic(auth_token=KEY, api_key=None, **OPTIONS) as client:
    seen["bearer"] = say(client, "b")
with anthropic.Anthropic(api_key="wrong", **OPTIONS) as client:
    seen["wrong key"] = raised(lambda: say(client, "a"))
print(json.dumps(seen))
