"""What a program with litellm does: ``URL KEY``. Prints what came of it as one JSON object."""

import asyncio
import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # Otherwise litellm asks GitHub at its import.

import litellm

litellm.suppress_debug_info = True
URL, KEY = sys.argv[1:]
HELLO = [{"role": "user", "content": "hello"}]


def options(provider, model, key=KEY):
    base = URL if provider == "anthropic" else f"{URL}/v1"
    shared = {"messages": HELLO, "max_tokens": 8, "num_retries": 0, "timeout": 30}
    return {"model": f"{provider}/{model}", "api_base": base, "api_key": key, **shared}


def say(provider, model, key=KEY):
    return litellm.completion(**options(provider, model, key)).choices[0].message.content


def raised(call):
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "nothing was raised"


async def streamed():
    stream = await litellm.acompletion(stream=True, **options("openai", "b"))
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


seen = {provider: say(provider, "a") for provider in ("openai", "hosted_vllm", "anthropic")}
seen["stream"] = "".join(
    chunk.choices[0].delta.content or "" for chunk in litellm.completion(stream=True, **options("openai", "a"))
)
seen["async stream"] = asyncio.run(streamed())
seen["anthropic stream"] = "".join(
    chunk.choices[0].delta.content or "" for chunk in litellm.completion(stream=True, **options("anthropic", "b"))
)
seen["adapter"] = [say(provider, "sql") for provider in ("openai", "anthropic")]
early = litellm.completion(stream=True, **options("openai", "a") | {"max_tokens": 500})
seen["left early"] = next(iter(early)).object
early.completion_stream.close()  # It has no close of its own, and dropping it leaves nothing until it is collected.
seen["in turn"] = [say("openai", model) for model in "abab"]
for provider, base in (("openai", f"{URL}/v1"), ("anthropic", URL)):
    seen[f"models of {provider}"] = litellm.get_valid_models(
        check_provider_endpoint=True, custom_llm_provider=provider, api_key=KEY, api_base=base
    )
seen["response"] = (
    litellm.responses(model="openai/b", input="hello", max_output_tokens=16, api_base=f"{URL}/v1", api_key=KEY)
    .output[0]
    .content[0]
    .text
)
seen["text"] = (
    litellm.text_completion(
        model="text-completion-openai/b", prompt="hello", api_base=f"{URL}/v1", api_key=KEY, max_tokens=4
    )
    .choices[0]
    .text
)
seen["unknown model"] = raised(lambda: say("openai", "nobody"))
seen["wrong key"] = raised(lambda: say("openai", "a", "wrong"))
print(json.dumps(seen))
