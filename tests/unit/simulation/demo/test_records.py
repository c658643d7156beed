"""What a call sends."""

from llmux.simulation.demo.records import Call, Kind


def test_a_streamed_chat_asks_for_a_stream() -> None:
    call = Call(0.0, "llama", Kind.CHAT_STREAM, "Hi", 5)
    assert call.path == "/v1/chat/completions"
    assert call.body == {
        "model": "llama",
        "max_tokens": 5,
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
    }


def test_a_plain_chat_does_not() -> None:
    assert Call(0.0, "llama", Kind.CHAT, "Hi", 5).body["stream"] is False


def test_a_completion_sends_its_prompt() -> None:
    call = Call(0.0, "qwen", Kind.COMPLETION, "Hi", 5)
    assert call.path == "/v1/completions"
    assert call.body == {"model": "qwen", "max_tokens": 5, "prompt": "Hi"}
