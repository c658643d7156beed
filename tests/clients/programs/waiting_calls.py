"""What streams do that wait for a cold model: ``URL LIBRARY``. Prints what came of it as one JSON object.

Beside each text stands whether the stream's head had come before the model had been started.
"""

import json
import sys
import urllib.request

import anthropic
import openai

URL, LIBRARY = sys.argv[1:]
OPTIONS = {"max_retries": 0, "timeout": 30.0}
HELLO = [{"role": "user", "content": "hello"}]
LONG = [{"role": "user", "content": "one word too many for the context of this model, which is tiny"}]


def is_cold(model):
    with urllib.request.urlopen(f"{URL}/control/status") as answer:
        return json.load(answer)["models"][model]["process_state"] in ("starting", "not_started")


def said(model, open_stream, text_of):
    with open_stream() as stream:
        early = is_cold(model)
        return ["".join(text_of(event) for event in stream), early]


def raised(open_stream, code_of):
    try:
        with open_stream() as stream:
            list(stream)
    except (openai.APIError, anthropic.APIError) as error:
        return [type(error).__name__, code_of(error)]
    return ["nothing was raised"]


def openai_calls():
    with openai.OpenAI(base_url=f"{URL}/v1", api_key="any", **OPTIONS) as client:

        def chat(model, messages=HELLO):
            return client.chat.completions.create(model=model, messages=messages, max_tokens=8, stream=True)

        def response(model):
            return client.responses.create(model=model, input="hello", max_output_tokens=8, stream=True)

        def code(error):
            return error.code

        return {
            "chat": said("a", lambda: chat("a"), lambda chunk: chunk.choices[0].delta.content or ""),
            "response": said("b", lambda: response("b"), lambda event: getattr(event, "delta", "")),
            "never": raised(lambda: response("never"), code),
            "refused": raised(lambda: chat("c", LONG), code),
        }


def anthropic_calls():
    with anthropic.Anthropic(base_url=URL, api_key="any", **OPTIONS) as client:

        def events(model, messages=HELLO):
            return client.messages.create(model=model, messages=messages, max_tokens=8, stream=True)

        def code(error):
            return error.body["error"]["type"]

        def helper():
            return client.messages.stream(model="a", messages=HELLO, max_tokens=8)

        return {
            "message": said("a", helper, lambda event: event.text if event.type == "text" else ""),
            "events": said("b", lambda: events("b"), lambda event: getattr(getattr(event, "delta", 0), "text", "")),
            "never": raised(lambda: events("never"), code),
            "refused": raised(lambda: events("c", LONG), code),
        }


print(json.dumps({"openai": openai_calls, "anthropic": anthropic_calls}[LIBRARY]()))
