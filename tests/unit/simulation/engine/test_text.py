from llmux.simulation.engine.text import chat_prompt, count_tokens, embedding, expected_text


def test_an_answer_depends_on_the_model_and_on_the_prompt_and_on_nothing_else() -> None:
    answers = {(model, prompt): expected_text(model, prompt, 8) for model in "ab" for prompt in ("x", "y")}
    assert len(set(answers.values())) == 4
    assert answers["a", "x"] == expected_text("a", "x", 8)


def test_model_and_prompt_cannot_be_shifted_into_each_other() -> None:
    assert expected_text("ab", "c", 8) != expected_text("a", "bc", 8)


def test_a_longer_answer_begins_with_the_shorter_one() -> None:
    long = expected_text("a", "x", 200)
    assert len(long.split(" ")) == 200
    assert long.startswith(expected_text("a", "x", 5))
    assert len({expected_text("a", "x", 200).split(" ")[index] for index in range(200)}) > 30


def test_a_chat_with_one_message_has_its_text_for_a_prompt() -> None:
    assert chat_prompt([{"role": "user", "content": "hello"}]) == "hello"
    assert chat_prompt([{"content": "one"}, {"content": None}, {"content": [{"type": "text", "text": "two"}]}]) == (
        "one\n\ntwo"
    )


def test_tokens_are_words() -> None:
    assert (count_tokens("three little words"), count_tokens("")) == (3, 1)


def test_embeddings_depend_on_model_and_text() -> None:
    assert len(embedding("a", "x")) == 16
    assert all(-1 <= number < 1 for number in embedding("a", "x"))
    assert embedding("a", "x") != embedding("b", "x") != embedding("b", "y")
