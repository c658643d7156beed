"""What a program with langchain-openai does: ``URL KEY``. Prints what came of it as one JSON object."""

import asyncio
import json
import sys

import openai
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

URL, KEY = sys.argv[1:]


def chat(model, key=KEY, **more):
    return ChatOpenAI(
        model=model, base_url=f"{URL}/v1", api_key=key, max_retries=0, timeout=30, **{"max_tokens": 8} | more
    )


def raised(call):
    try:
        call()
    except openai.APIStatusError as error:
        # langchain's own classes are these' subclasses.
        return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith("openai"))
    return "nothing was raised"


async def at_once():
    return [message.content for message in await asyncio.gather(*(chat(model).ainvoke("hello") for model in "abab"))]


seen = {"chat": chat("a").invoke("hello").content}
seen["stream"] = "".join(chunk.content for chunk in chat("a").stream("hello"))
early = chat("a", max_tokens=500).stream("hello")
seen["left early"] = type(next(early)).__name__
early.close()
seen["in turn"] = [chat(model).invoke("hello").content for model in "abab"]
seen["batch"] = [message.content for message in chat("b").batch(["hello"] * 3)]
seen["at once"] = asyncio.run(at_once())
seen["response"] = chat("a", use_responses_api=True).invoke("hello").text
seen["response stream"] = "".join(chunk.text for chunk in chat("b", use_responses_api=True).stream("hello"))
seen["models"] = [model.id for model in chat("a").root_client.models.list()]
seen["adapter"] = chat("sql").invoke("hello").content
# Counting tokens here would need a file from the network.
embeddings = OpenAIEmbeddings(
    model="a", base_url=f"{URL}/v1", api_key=KEY, check_embedding_ctx_length=False, max_retries=0
)
seen["embedding"] = embeddings.embed_query("hello")
seen["unknown model"] = raised(lambda: chat("nobody").invoke("hello"))
seen["wrong key"] = raised(lambda: chat("a", "wrong").invoke("hello"))
print(json.dumps(seen))
