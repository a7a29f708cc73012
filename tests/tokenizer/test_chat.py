from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tallow.errors import DataError
from tallow.tokenizer.chat import CHATML, ChatTemplate, encode_chat, encode_chat_prompt
from tallow.tokenizer.tokenizer import Tokenizer

Backend = Callable[[], tokenizers.Tokenizer]
# The formats of well-known families, in the ways in which their templates are written.
HEADERS = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n\\n' }}{%- endif %}"""
INST = """\
{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}
{%- else %}{% set system = '' %}{% set rest = messages %}{% endif %}
{{- bos_token }}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate user/assistant') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system %}{% set content = system ~ '\\n\\n' ~ message.content %}
        {%- else %}{% set content = message.content %}{% endif %}
        {{- '[INST] ' ~ content.strip() ~ ' [/INST]' }}
    {%- else %}
        {{- ' ' ~ message['content'].strip() ~ eos_token }}
    {%- endif %}
{%- endfor %}"""
TURNS = """\
{{ bos_token }}{% for message in messages %}
{%- set role = 'model' if message.role == 'assistant' else message.role %}
{{ '<|im_start|>' ~ role ~ '\n' ~ message['content'] | trim ~ '<|im_end|>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"""
BUILT = """\
{%- for message in messages %}{{ '<|im_' + message['side'] + '|>' + message['content'] + '\\n' }}{% endfor %}"""
THINKING = """\
{%- set ns = namespace(last=0) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content and loop.index0 < ns.last %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""
TOOLS = """\
{%- if tools %}{{ '<|im_start|>system\\n' }}{% for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}
{{- '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
    {%- for call in message.tool_calls or [] %}
        {{- '<think>' + {"name": call.function.name, "arguments": call.function.arguments} | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
GENERATION = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}{% generation %}{{ message.content }}{{ '<|im_end|>' }}{% endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}"""
TEMPLATES = {
    "chatml": CHATML,
    "headers": HEADERS,
    "inst": INST,
    "turns": TURNS,
    "thinking": THINKING,
    "tools": TOOLS,
    "generation": GENERATION,
}
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "What is 12345 plus 678?  "}
ANSWER = {"role": "assistant", "content": "It's 13023. 🙂"}
AGAIN = [{"role": "user", "content": "Мой дядя?\n"}, {"role": "assistant", "content": "人生自古谁无死"}]
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [USER, ANSWER],
    "two": [USER, ANSWER, *AGAIN],
    "system": [SYSTEM, USER, ANSWER, *AGAIN],
    "question": [SYSTEM, USER],
}
TOOL = {"type": "function", "function": {"name": "search", "description": "Find <it> & é", "parameters": {"q": 1}}}


def with_template(backend: tokenizers.Tokenizer, template: str) -> Tokenizer:
    return Tokenizer.from_backend(backend, bos_token="<s>", eos_token="<|im_end|>", chat_template=template)


def learned_text(
    tokenizer: Tokenizer,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None = None,
    wanted: list[bool] | None = None,
) -> list[str]:
    """The runs of learned tokens, decoded."""
    runs, previous = [], False
    for id, learned in zip(*encode_chat(tokenizer, messages, tools=tools, learned=wanted), strict=True):
        if learned and not previous:
            runs.append([])
        if learned:
            runs[-1].append(id)
        previous = learned
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs]


class TestAgainstTransformers:
    @pytest.mark.parametrize("name", TEMPLATES)
    def test_text_and_ids(self, name: str, byte_level_backend: Backend, tmp_path: Path) -> None:
        tokenizer = with_template(byte_level_backend(), TEMPLATES[name])
        tokenizer.save(tmp_path)
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        assert tokenizer.chat_template is not None
        for messages in CHATS.values():
            for prompt in (False, True):
                text = theirs.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
                assert tokenizer.chat_template.render(messages, add_generation_prompt=prompt) == text
            theirs_ids = theirs.apply_chat_template(messages, return_dict=False)
            assert encode_chat(tokenizer, messages)[0] == theirs_ids
            prompt_ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            assert encode_chat_prompt(tokenizer, messages) == prompt_ids

    @pytest.mark.parametrize("name", ["headers", "inst"])
    def test_ids_of_a_sentencepiece_like_tokenizer(
        self, name: str, sentencepiece_backend: Backend, tmp_path: Path
    ) -> None:
        backend = sentencepiece_backend()
        backend.add_special_tokens(["<|im_start|>", "<|eot_id|>"])
        tokenizer = Tokenizer.from_backend(backend, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATES[name])
        tokenizer.save(tmp_path)
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        for messages in CHATS.values():
            assert encode_chat(tokenizer, messages)[0] == theirs.apply_chat_template(messages, return_dict=False)

    @pytest.mark.parametrize("name", ["chatml", "generation"])
    @pytest.mark.parametrize("chat", ["one", "two", "system"])
    def test_masks(self, name: str, chat: str, byte_level_backend: Backend, tmp_path: Path) -> None:
        tokenizer = with_template(byte_level_backend(), TEMPLATES[name])
        tokenizer.save(tmp_path)
        theirs = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
            CHATS[chat], return_dict=True, return_assistant_tokens_mask=True
        )
        ids, learned = encode_chat(tokenizer, CHATS[chat])
        assert ids == theirs["input_ids"]
        assert list(map(int, learned)) == theirs["assistant_masks"]
        assert 0 < sum(learned) < len(learned)

    def test_tools_and_variables(self, byte_level_backend: Backend, tmp_path: Path) -> None:
        call = {"id": "1", "type": "function", "function": {"name": "search", "arguments": {"q": "<é>"}}}
        messages = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
        tokenizer = with_template(byte_level_backend(), TOOLS)
        tokenizer.save(tmp_path)
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        expected = theirs.apply_chat_template(messages, tools=[TOOL], return_dict=False)
        assert encode_chat(tokenizer, messages, tools=[TOOL])[0] == expected
        answers = [*messages, {"role": "tool", "content": "3"}, ANSWER, *AGAIN]
        for chat in (messages, [SYSTEM, *answers]):
            chatml = with_template(byte_level_backend(), CHATML)
            chatml.save(tmp_path / "chatml")
            their_masks = AutoTokenizer.from_pretrained(tmp_path / "chatml").apply_chat_template(
                chat, tools=[TOOL], return_dict=True, return_assistant_tokens_mask=True
            )
            ids, learned = encode_chat(chatml, chat, tools=[TOOL])
            assert ids == their_masks["input_ids"]
            assert list(map(int, learned)) == their_masks["assistant_masks"]
        thinking = with_template(byte_level_backend(), THINKING)
        assert thinking.chat_template is not None
        text = thinking.chat_template.render([USER], add_generation_prompt=True, variables={"enable_thinking": False})
        assert text.endswith("<think>\n\n</think>\n\n")


class TestWhatIsLearned:
    @pytest.mark.parametrize("name", ["chatml", "generation", "tools", "turns"])
    def test_answers_and_their_end_tokens(self, name: str, byte_level_backend: Backend) -> None:
        tokenizer = with_template(byte_level_backend(), TEMPLATES[name])
        for chat in ("two", "system"):
            assert learned_text(tokenizer, CHATS[chat]) == ["It's 13023. 🙂<|im_end|>", "人生自古谁无死<|im_end|>"]
        assert learned_text(tokenizer, CHATS["question"]) == []

    def test_without_generation_tag(self, byte_level_backend: Backend) -> None:
        tokenizer = with_template(byte_level_backend(), INST)
        assert learned_text(tokenizer, CHATS["system"]) == [" It's 13023. 🙂<|im_end|>", " 人生自古谁无死<|im_end|>"]
        headers = Tokenizer.from_backend(
            byte_level_backend(), bos_token="<s>", eos_token="<|eot_id|>", chat_template=HEADERS
        )
        assert learned_text(headers, CHATS["two"]) == ["It's 13023. 🙂<|eot_id|>", "人生自古谁无死<|eot_id|>"]

    def test_an_end_that_is_no_token_is_learned(self, byte_level_backend: Backend) -> None:
        template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
        template += "{% if add_generation_prompt %}assistant: {% endif %}"
        tokenizer = with_template(byte_level_backend(), template)
        assert learned_text(tokenizer, [USER, ANSWER]) == ["It's 13023. 🙂\n\n"]

    def test_pieces_make_up_the_text(self) -> None:
        for source in TEMPLATES.values():
            template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "<|im_end|>"})
            for messages in CHATS.values():
                pieces = template.render_masked(messages)
                assert "".join(text for text, _ in pieces) == template.render(messages)

    def test_answers_one_after_another(self, byte_level_backend: Backend) -> None:
        messages = [USER, ANSWER, ANSWER]
        for source in (CHATML, TOOLS):
            assert len(learned_text(with_template(byte_level_backend(), source), messages)) == 2

    @pytest.mark.parametrize("name", ["chatml", "generation", "turns"])
    def test_content_in_parts_is_joined(self, name: str, byte_level_backend: Backend) -> None:
        parts = {"role": "assistant", "content": [{"type": "text", "text": "It's"}, {"type": "text", "text": " so"}]}
        tokenizer = with_template(byte_level_backend(), TEMPLATES[name])
        assert learned_text(tokenizer, [USER, parts]) == ["It's so<|im_end|>"]
        assert encode_chat_prompt(tokenizer, [{**parts, "role": "user"}]) == encode_chat_prompt(
            tokenizer, [{"role": "user", "content": "It's so"}]
        )

    @pytest.mark.parametrize("name", ["chatml", "tools"])
    def test_calls_of_tools_and_not_what_they_give(self, name: str, byte_level_backend: Backend) -> None:
        call = {"type": "function", "function": {"name": "search", "arguments": {"q": "é"}}}
        messages = [
            USER,
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "13023"},
            {"role": "assistant", "content": "Once more:", "tool_calls": [call]},
            {"role": "tool", "content": "13023"},
            ANSWER,
            *AGAIN,
        ]
        written = '{"name": "search", "arguments": {"q": "é"}}'
        written = f"<tool_call>\n{written}\n</tool_call>" if name == "chatml" else f"<think>{written}"
        between = "\n" if name == "chatml" else ""
        tokenizer = with_template(byte_level_backend(), TEMPLATES[name])
        assert learned_text(tokenizer, messages, [TOOL]) == [
            f"{written}<|im_end|>",
            f"Once more:{between}{written}<|im_end|>",
            "It's 13023. 🙂<|im_end|>",
            "人生自古谁无死<|im_end|>",
        ]

    @pytest.mark.parametrize("name", ["chatml", "generation", "tools", "turns", "headers", "inst"])
    def test_only_those_that_are_wanted(self, name: str, byte_level_backend: Backend) -> None:
        tokenizer = with_template(byte_level_backend(), TEMPLATES[name])
        for index, answer in ((1, "It's 13023. 🙂"), (3, "人生自古谁无死")):
            [text] = learned_text(tokenizer, CHATS["two"], wanted=[place == index for place in range(4)])
            assert text.strip().removesuffix("<|im_end|>").removesuffix("<|eot_id|>") == answer
        assert learned_text(tokenizer, CHATS["two"], wanted=[False] * 4) == []

    def test_a_template_that_marks_answers_twice_cannot_tell_them_apart(self) -> None:
        twice = GENERATION.replace("{% endgeneration %}", "{% endgeneration %} {% generation %}.{% endgeneration %}")
        template = ChatTemplate(twice, {})
        assert len([text for text, learned in template.render_masked(CHATS["two"]) if learned]) == 4
        with pytest.raises(DataError, match="marks 4 parts in a conversation with 2 messages"):
            template.render_masked(CHATS["two"], learned=[False, True, False, False])

    def test_an_end_of_a_turn_that_is_not_the_end_of_a_text(self, byte_level_backend: Backend) -> None:
        tokenizer = Tokenizer.from_backend(byte_level_backend(), eos_token="<|endoftext|>", chat_template=TURNS)
        assert learned_text(tokenizer, [USER, ANSWER]) == ["It's 13023. 🙂<|im_end|>"]

    def test_a_template_that_leaves_out_tools_is_refused(self) -> None:
        call = {"type": "function", "function": {"name": "search", "arguments": {}}}
        messages = [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
        for source in (HEADERS, GENERATION):
            with pytest.raises(DataError, match="leaves out the tool search"):
                ChatTemplate(source, {"bos_token": ""}).render_masked([USER, ANSWER], tools=[TOOL])
        listed = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
        with pytest.raises(DataError, match="leaves out the call of the tool search"):
            ChatTemplate(listed + GENERATION, {}).render_masked(messages, tools=[TOOL])
        ChatTemplate(CHATML, {}).render_masked(messages, tools=[TOOL])

    def test_a_template_that_moves_tools_is_refused(self) -> None:
        source = (
            "{% for m in messages %}{% if tools and loop.revindex0 < 2 %}{{ tools | tojson }}{% endif %}"
            "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
        )
        with pytest.raises(DataError, match="cannot be told what the assistant wrote in message 1"):
            ChatTemplate(source, {}).render_masked(CHATS["two"], tools=[TOOL])

    def test_a_template_that_rewrites_earlier_answers_is_refused(self, byte_level_backend: Backend) -> None:
        tokenizer = with_template(byte_level_backend(), THINKING)
        thought = {"role": "assistant", "content": "<think>\nhm</think>\nIt's so"}
        assert learned_text(tokenizer, [USER, thought]) == ["<think>\nhm</think>\nIt's so<|im_end|>"]
        with pytest.raises(DataError, match=r"message 1.*otherwise") as caught:
            encode_chat(tokenizer, [USER, thought, USER, ANSWER])
        assert "generation" in caught.value.hint

    def test_a_prompt_that_is_not_what_answers_begin_with_is_refused(self) -> None:
        template = ChatTemplate(
            "{% for m in messages %}{{ m.content }}{% endfor %}{{ 'A:' if add_generation_prompt }}", {}
        )
        with pytest.raises(DataError, match="cannot be told"):
            template.render_masked([USER, ANSWER])

    def test_a_generation_tag_that_marks_nothing_is_refused(self) -> None:
        source = "{% for m in messages %}{{ m.content }}{% generation %}{% endgeneration %}{% endfor %}"
        with pytest.raises(DataError, match="marks nothing"):
            ChatTemplate(source, {}).render_masked([USER, ANSWER])


CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "[INST]", "[/INST]", "<|eot_id|>"]
FRAGMENTS = [*CONTROL, "<|im_", "end|>", "<|im_end", "|>", "<", "[", "[IN", "ST]", "a", " ", "\n", "\ue000", "\ue001"]
contents = st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join)


def control_tokens(tokenizer: Tokenizer, ids: list[int]) -> list[str | None]:
    return [tokenizer.backend.id_to_token(id) for id in ids if id in tokenizer.special_ids]


class TestControlTokensInContent:
    def test_need_one_private_use_character(self, byte_level: Tokenizer) -> None:
        *others, last = map(chr, [*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE)])
        text = "".join(others)
        ids = encode_chat_prompt(byte_level, [{"role": "user", "content": text}])
        assert text in byte_level.decode(ids)
        with pytest.raises(DataError, match="private-use"):
            encode_chat_prompt(byte_level, [{"role": "user", "content": text + last}])

    @pytest.mark.parametrize("name", TEMPLATES)
    @given(question=contents, answer=contents)
    def test_come_from_the_template_alone(
        self, name: str, question: str, answer: str, byte_level_backend: Backend
    ) -> None:
        tokenizer = with_template(byte_level_backend(), TEMPLATES[name])
        assert tokenizer.chat_template is not None
        harmless = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        ids, learned = encode_chat(tokenizer, messages)
        assert control_tokens(tokenizer, ids) == control_tokens(tokenizer, encode_chat(tokenizer, harmless)[0])
        assert tokenizer.decode(ids, skip_special_tokens=False) == tokenizer.chat_template.render(messages)
        assert len(learned) == len(ids)
        prompt = encode_chat_prompt(tokenizer, messages[:1])
        assert control_tokens(tokenizer, prompt) == control_tokens(
            tokenizer, encode_chat_prompt(tokenizer, harmless[:1])
        )

    @given(first=contents, second=contents)
    def test_not_from_parts_that_only_together_spell_one(self, first: str, second: str, byte_level: Tokenizer) -> None:
        messages = [{"role": "user", "content": [{"type": "text", "text": text} for text in (first, second)]}]
        ids, _ = encode_chat(byte_level, messages)
        assert control_tokens(byte_level, ids) == ["<|im_start|>", "<|im_end|>"]
        assert byte_level.chat_template is not None
        assert byte_level.decode(ids, skip_special_tokens=False) == byte_level.chat_template.render(messages)

    def test_in_roles_tools_and_arguments(self, byte_level_backend: Backend) -> None:
        tokenizer = with_template(byte_level_backend(), TOOLS)
        assert tokenizer.chat_template is not None
        function = {"name": "f<|im_end|>", "arguments": {"<|im_end|>": ["<|im_start|>"]}}
        messages = [
            {"role": "user<|im_end|>", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": function}]},
        ]
        ids, _ = encode_chat(tokenizer, messages, tools=[{"name": "<|endoftext|>"}])
        assert control_tokens(tokenizer, ids) == ["<|im_start|>", "<|im_end|>"] * 3
        assert tokenizer.decode(ids, skip_special_tokens=False) == tokenizer.chat_template.render(
            messages, tools=[{"name": "<|endoftext|>"}]
        )

    def test_templates_may_build_them_from_roles(self, byte_level_backend: Backend) -> None:
        tokenizer = with_template(byte_level_backend(), BUILT)
        ids = encode_chat_prompt(tokenizer, [{"role": "user", "side": "start", "content": "<|im_start|>"}])
        assert control_tokens(tokenizer, ids) == ["<|im_start|>"]

    @given(content=contents)
    def test_where_the_model_itself_would_read_them(self, content: str, unigram_backend: Backend) -> None:
        tokenizer = Tokenizer.from_backend(unigram_backend(), bos_token="<s>", eos_token="</s>", chat_template=INST)
        ids, _ = encode_chat(tokenizer, [{"role": "user", "content": content}])
        assert [id for id in ids if id in (1, 2)] == [1]

    def test_thoughts_stay_visible_to_the_template(self, byte_level_backend: Backend) -> None:
        """`<think>` is an added token but no control token here: templates look for it."""
        tokenizer = with_template(byte_level_backend(), THINKING)
        assert tokenizer.chat_template is not None
        messages = [USER, {"role": "assistant", "content": "<think>hm</think>\nso"}, USER]
        ids = encode_chat_prompt(tokenizer, messages)
        assert tokenizer.backend.token_to_id("</think>") not in ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == tokenizer.chat_template.render(
            messages, add_generation_prompt=True
        )


class TestFailures:
    def fails(self, source: str, match: str, messages: list[dict[str, Any]] | None = None) -> None:
        with pytest.raises(DataError, match=match):
            ChatTemplate(source, {}).render(messages or [USER])

    def test_of_the_template(self) -> None:
        self.fails("{% for %}", "template is broken")
        self.fails("a" * 200_000, "broken: it is too long")
        self.fails("{{ undefined.x }}", "template fails")
        self.fails("{{ 1 / 0 }}", "template fails: division by zero")
        self.fails("{{ 'a' * 10**9 }}", "was stopped")
        self.fails("{{ ''.__class__.mro() }}", "template fails")

    def test_a_refusal_says_why(self) -> None:
        self.fails(INST, "refuses this conversation: Roles must alternate", [USER, USER])

    @pytest.mark.parametrize(
        ("messages", "match"),
        [
            (["hi"], "message 0 has no role"),
            ([USER, {"content": "x"}], "message 1 has no role"),
            ([{"role": 5, "content": "x"}], "message 0 has no role"),
            ([{"role": "user", "content": object()}], "message 0 holds a object"),
            ([{"role": "user", "content": {1: "x"}}], "message 0 holds a dict"),
            ([USER, {"role": "user"}], "message 1 has no content"),
            ([{"role": "user", "content": None}], "message 0 has no content"),
            ([{"role": "assistant", "content": None, "tool_calls": []}], "message 0 has no content"),
            ([{"role": "user", "content": 7}], "the content of message 0 is no text"),
            ([{"role": "user", "content": {"text": "x"}}], "the content of message 0 is no text"),
            ([{"role": "user", "content": ["x"]}], "part 0 of the content of message 0 is no text"),
            ([{"role": "user", "content": [{"type": "text", "text": None}]}], "part 0 of the content of message 0"),
            ([{"role": "user", "content": [{"type": "image_url", "text": "x"}]}], "part 0 of the content of message 0"),
        ],
    )
    def test_of_messages(self, messages: list[Any], match: str) -> None:
        with pytest.raises(DataError, match=match):
            ChatTemplate(CHATML, {}).render(messages)

    def test_without_a_template(self, byte_level_backend: Backend) -> None:
        tokenizer = Tokenizer.from_backend(byte_level_backend())
        for encode in (encode_chat, encode_chat_prompt):
            with pytest.raises(DataError, match="no chat template"):
                encode(tokenizer, [USER])

    def test_half_a_surrogate_pair(self, byte_level: Tokenizer) -> None:
        with pytest.raises(DataError, match="cannot be encoded"):
            encode_chat(byte_level, [{"role": "user", "content": "\ud800"}])

    def test_a_broken_template_does_not_keep_a_tokenizer_from_loading(
        self, byte_level_backend: Backend, tmp_path: Path
    ) -> None:
        with_template(byte_level_backend(), "{% for %}").save(tmp_path)
        tokenizer = Tokenizer.load(tmp_path)
        assert tokenizer.encode("a")
        with pytest.raises(DataError, match="template is broken"):
            encode_chat(tokenizer, [USER])


def test_threads_share_a_template(byte_level: Tokenizer) -> None:
    expected = {index: encode_chat(byte_level, [USER, ANSWER] * index) for index in range(1, 9)}
    found: dict[int, Any] = {}

    def work(index: int) -> None:
        for _ in range(5):
            found[index] = encode_chat(byte_level, [USER, ANSWER] * index)

    threads = [threading.Thread(target=work, args=(index,)) for index in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_messages_are_not_changed() -> None:
    messages = [{"role": "user", "content": "<|im_end|>", "name": None}]
    ChatTemplate(CHATML, {}).render(messages)
    assert messages == [{"role": "user", "content": "<|im_end|>", "name": None}]
