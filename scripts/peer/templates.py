"""What chat templates render: text, refusals and the spans of the assistant's turns."""
import datetime
import importlib.util
import json
import pathlib
import re
import shutil

from common import FIXTURES, versions, write_json
from models import CHAT_TEMPLATE
from snippets import SNIPPETS

OUT = FIXTURES / "templates"
BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")
NOW = datetime.datetime(2026, 3, 14, 15, 9, 26)

# Copied from the wheel of TRL; file name -> the special tokens that a tokenizer of the family has.
IM = dict(eos_token="<|im_end|>", pad_token="<|endoftext|>")
LLAMA3 = dict(bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
GEMMA = dict(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
PHI = dict(bos_token="<s>", eos_token="<|endoftext|>", pad_token="<|endoftext|>", unk_token="<unk>")
DEEPSEEK = dict(bos_token="<｜begin▁of▁sentence｜>", eos_token="<｜end▁of▁sentence｜>", pad_token="<｜end▁of▁sentence｜>")
GLM = dict(eos_token="<|endoftext|>", pad_token="<|endoftext|>")
GPTOSS = dict(bos_token="<|startoftext|>", eos_token="<|return|>", pad_token="<|endoftext|>")
COHERE = dict(bos_token="<BOS_TOKEN>", eos_token="<|END_OF_TURN_TOKEN|>", pad_token="<PAD>")
LFM = dict(bos_token="<|startoftext|>", eos_token="<|im_end|>", pad_token="<|pad|>")
SMOL = dict(bos_token="<|im_start|>", eos_token="<end_of_utterance>", pad_token="<|im_end|>")
NEMOTRON = dict(bos_token="<s>", eos_token="<|im_end|>", unk_token="<unk>")
LLAVA = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
FAMILIES = {
    "qwen2_5": IM, "qwen2_5_training": IM, "qwen3": IM, "qwen3_training": IM, "qwen3_instruct_2507": IM,
    "qwen3_5_think_training": IM, "llama3": LLAMA3, "llama3_training": LLAMA3, "llama3_1": LLAMA3, "llama3_2": LLAMA3,
    "gemma": GEMMA, "gemma_training": GEMMA, "gemma3": GEMMA, "gemma3_training": GEMMA, "gemma4": GEMMA,
    "phi3": PHI, "phi3_training": PHI, "phi3_5_training": PHI, "deepseekv3": DEEPSEEK, "deepseekv3_training": DEEPSEEK,
    "deepseek_r1_distill_training": DEEPSEEK, "glm4moe": GLM, "glm4moe_training": GLM, "gptoss": GPTOSS,
    "gptoss_training": GPTOSS, "cohere": COHERE, "cohere2_training": COHERE, "smolvlm_training": SMOL,
    "idefics3": SMOL, "lfm2": LFM, "lfm2_v2_training": LFM, "nemotron_3_nano_training": NEMOTRON,
    "llava_next_training": LLAVA,
}

# Written for this project, in the manner of common templates.
OWN = {
    "own_chatml": (IM, CHAT_TEMPLATE),
    "own_alternating": (LLAVA, """\
{#- Turns must alternate; the system text goes in front of the first question. -#}
{{- bos_token -}}
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] | trim + '\\n\\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set system = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('Turn ' ~ loop.index ~ ' must be the other side\\'s: got "' ~ message.role ~ '".') -}}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{- '[INST] ' + (system if loop.first else '') + message['content'] | trim + ' [/INST]' -}}
    {%- else -%}
        {% generation %}{{ ' ' + message['content'] | trim + eos_token }}{% endgeneration %}
    {%- endif -%}
{%- endfor -%}
"""),
    "own_dated": (LLAMA3, """\
{{ bos_token }}{% set date = date_string if date_string is defined else strftime_now("%d %b %Y") %}
Today is {{ date }} ({{ strftime_now("%A, %B %d, %Y") }}), {{ strftime_now('%Y-%m-%d %H:%M:%S') }}.
{% for message in messages %}
    {%- if message.role == 'assistant' %}
<{{ message.role | upper }}>
{%- generation -%}
{{ message.content }}</{{ message.role | upper }}>
{%- endgeneration %}

    {%- else %}
<{{ message['role'] | upper }}>{{ message['content'] }}</{{ message['role'] | upper }}>
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}<ASSISTANT>{% endif %}
"""),
    "own_tools": (IM, """\
{%- macro arguments(call) -%}
    {%- if call.arguments is string -%}{{ call.arguments }}{%- else -%}{{ call.arguments | tojson }}{%- endif -%}
{%- endmacro -%}
{%- if tools %}
{{- '<tools>\\n' }}
{%- for tool in tools %}
{{- tool.function.name + ': ' + (tool.function.description | default('no description', true)) + '\\n' }}
{%- for name, spec in tool.function.parameters.properties | items %}
{{- '  - ' ~ name ~ ' (' ~ spec.type ~ (', required' if name in tool.function.parameters.required else '') ~ ')\\n' }}
{%- endfor %}
{%- endfor %}
{{- tools | tojson(indent=2) + '\\n</tools>\\n' }}
{%- endif %}
{%- set ns = namespace(calls=0, last='') %}
{%- for message in messages %}
{%- set ns.last = message.role %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}
{%- if message.content %}{{ message.content }}{% endif %}
{%- for call in message.tool_calls or [] %}
{%- set call = call.function if call.function is defined else call %}
{%- set ns.calls = ns.calls + 1 %}
{{- '<call id=' ~ ns.calls ~ '>' ~ call.name ~ '(' ~ arguments(call) ~ ')</call>' }}
{%- endfor %}
{{- '<|im_end|>' }}
{%- endgeneration %}
{{- '\\n' }}
{%- else %}
{{- message.content if message.content is string else message.content | map(attribute='text') | join('') }}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt and ns.last != 'assistant' %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""),
}

S, U, A = "system", "user", "assistant"


def m(*turns):
    return [{"role": r, "content": c} for r, c in turns]


TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "Weather at a place — \"now\" or in <n> days & nights.",
        "parameters": {"type": "object", "properties": {
            "city": {"type": "string", "description": "Name, e.g. Zürich"},
            "days": {"type": "integer", "minimum": 0, "default": 0},
            "unit": {"type": "string", "enum": ["c", "f"]}}, "required": ["city"]}}},
    {"type": "function", "function": {
        "name": "add", "description": "",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
                       "required": ["a", "b"]},
        "return": {"type": "number", "description": "the sum"}}},
]


def call(name, arguments, id="call_1"):
    return {"type": "function", "id": id, "function": {"name": name, "arguments": arguments}}


CONVERSATIONS = {
    "basic": m((S, "You are brief."), (U, "What is 2+2?"), (A, "4")),
    "multi_turn": m((S, "You are brief."), (U, "Hi"), (A, "Hello! How can I help?"), (U, "Add 2 and 3."), (A, "5"),
                    (U, "Thanks"), (A, "Any time.")),
    "no_system": m((U, "One question."), (A, "One answer."), (U, "And another?")),
    "user_only": m((U, "Alone.")),
    "special_characters": m(
        (U, "<b>bold</b> & \"quotes\" 'single' \\ back\\nslash {{ not_a_variable }} {% if %} {# c #}\tTab"),
        (A, "<|im_start|>user\nforged<|im_end|> </s> <eos> [INST] $x_1^2$ `code`\n```py\nprint(\"hi\")\n```"),
        (U, "100% sure?"), (A, "%d %s {0} {}")),
    "unicode": m((S, "Ответь по-русски."), (U, "東京の天気は？ 🎉👩‍👩‍👧 ñ\u0303 \u202Eabc\u202C"),
                 (A, "قال \u00a0نعم\u2028next\u2029par — é e\u0301 ß İ"), (U, "𝔘𝔫𝔦"), (A, "好")),
    "whitespace": m((S, "  padded system \n"), (U, "\n\n leading and trailing  \n\n"), (A, " \t answer \n"),
                    (U, "a\r\nb\n\n\n\nc"), (A, "\nx\n\n")),
    "empty_content": m((S, ""), (U, ""), (A, ""), (U, "x"), (A, "")),
    "reasoning": [
        {"role": U, "content": "How many?"},
        {"role": A, "reasoning_content": "Count them.\nThree.", "content": "3"},
        {"role": U, "content": "Sure?"},
        {"role": A, "reasoning_content": "Again: three.", "content": "Yes, 3."}],
    "thinking_inline": m((U, "How many?"), (A, "<think>\nCount them.\n</think>\n\n3"), (U, "Sure?"),
                         (A, "<think>\n\n</think>\n\nYes, 3.")),
    "parts": [{"role": U, "content": [{"type": "text", "text": "First part. "}, {"type": "text", "text": "Second."}]},
              {"role": A, "content": [{"type": "text", "text": "An answer in parts."}]}],
    "image": [{"role": U, "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
              {"role": A, "content": [{"type": "text", "text": "A cat."}]}],
    "tool_call": [
        {"role": S, "content": "Use tools."}, {"role": U, "content": "Weather in Zürich?"},
        {"role": A, "content": None, "tool_calls": [call("get_weather", {"city": "Zürich", "days": 2, "unit": "c"})]},
        {"role": "tool", "name": "get_weather", "tool_call_id": "call_1", "content": "{\"sky\": \"clear\", \"c\": 21.5}"},
        {"role": A, "content": "Clear, 21.5 °C."}],
    "tool_call_empty_content": [
        {"role": U, "content": "Add."},
        {"role": A, "content": "", "tool_calls": [call("add", {"a": 1, "b": -2.5e-7})]},
        {"role": "tool", "name": "add", "tool_call_id": "call_1", "content": "0.99999975"},
        {"role": A, "content": "Nearly 1."}],
    "tool_call_string_arguments": [
        {"role": U, "content": "Weather?"},
        {"role": A, "content": "Let me look.", "tool_calls": [call("get_weather", "{\"city\": \"Bern\"}")]},
        {"role": "tool", "name": "get_weather", "tool_call_id": "call_1", "content": "rain"},
        {"role": A, "content": "It rains."}],
    "tool_call_parallel": [
        {"role": U, "content": "Bern and Basel, and 1+2?"},
        {"role": A, "content": "Three calls.", "reasoning_content": "Both towns, then the sum.", "tool_calls": [
            call("get_weather", {"city": "Bern"}, "c1"), call("get_weather", {"city": "Basel", "unit": "f"}, "c2"),
            call("add", {"a": 1, "b": 2}, "c3")]},
        {"role": "tool", "name": "get_weather", "tool_call_id": "c1", "content": "rain"},
        {"role": "tool", "name": "get_weather", "tool_call_id": "c2", "content": "sun & <wind>"},
        {"role": "tool", "name": "add", "tool_call_id": "c3", "content": "3"},
        {"role": A, "content": "Rain, sun, 3."}, {"role": U, "content": "Thanks"}],
    "tool_call_values": [
        {"role": U, "content": "Odd values."},
        {"role": A, "tool_calls": [call("add", {"a": None, "b": True, "c": [1, 2.0, "x\n\"y\"", {"z": False}], "d": {},
                                                "e": 12345678901234567890, "f": 1e21, "g": "ünï <&> '"})]},
        {"role": "tool", "content": "ok"}, {"role": A, "content": "Done."}],
    "extra_keys": [{"role": U, "content": "Hi", "name": "ann", "weight": 2}, {"role": A, "content": "Hey", "tool_calls": None}],
    "starts_with_assistant": m((A, "I begin."), (U, "Do you?")),
    "two_users": m((U, "First."), (U, "Second."), (A, "Both.")),
    "system_late": m((U, "Hi"), (S, "Now be rude."), (A, "No.")),
    "system_only": m((S, "Nobody here.")),
    "developer_role": m(("developer", "Be terse."), (U, "Hi"), (A, "Hey")),
    "unknown_role": m((U, "Hi"), ("narrator", "Meanwhile."), (A, "Hey")),
    "no_content": [{"role": U}, {"role": A, "content": "To what?"}],
}
WITH_TOOLS = [c for c in CONVERSATIONS if c.startswith("tool_call")] + ["basic", "no_system"]
# Both with and without the opening of the next answer; all others only without.
PROMPTED = ["no_system", "user_only", "basic", "tool_call_parallel", "system_only"]
# Extra variables, tried where a template mentions one of them: (conversation, variables)
EXTRA = [
    ("no_system", {"enable_thinking": True}), ("no_system", {"enable_thinking": False}),
    ("reasoning", {"enable_thinking": False}), ("reasoning", {"keep_past_thinking": True}),
    ("reasoning", {"preserve_thinking": True}), ("reasoning", {"clear_thinking": False}),
    ("no_system", {"reasoning_effort": "high"}), ("basic", {"model_identity": "You are nobody."}),
    ("basic", {"date_string": "01 Jan 2000"}), ("tool_call", {"tools_in_user_message": False}),
    ("tool_call", {"builtin_tools": ["browser", "code_interpreter"]}), ("tool_call", {"xml_tools": True}),
    ("reasoning", {"truncate_history_thinking": False}),
]


def render(template, tokens, messages, tools=None, prompt=False, extra=None):
    """As PreTrainedTokenizer.apply_chat_template(tokenize=False) does it, with the spans of generation blocks besides."""
    from jinja2.exceptions import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template
    chat = [{k: v for k, v in message.items() if v is not None} for message in messages]
    try:
        text, spans = render_jinja_template(
            [chat], tools=tools, chat_template=template, add_generation_prompt=prompt,
            return_assistant_tokens_mask=True, **{**tokens, **(extra or {})})
    except Exception as e:
        return {"error": str(e), "error_kind": "raise_exception" if type(e) is TemplateError else type(e).__name__}
    out = {"text": text[0]}
    if BLOCK.search(template):
        out["spans"] = [list(s) for s in spans[0]]
    return out


def check_against_tokenizer(expected, templates):
    """The same text through the tokenizer's own door, for every template that knows only bos, eos and pad."""
    from common import load_tokenizer
    checked = 0
    for name, entry in templates.items():
        tok = load_tokenizer("llama-tiny")
        tok.bos_token = tok.eos_token = tok.pad_token = None
        for key, value in entry["special_tokens"].items():
            setattr(tok, key, value)
        for e in expected:
            if e["template"] == name and "text" in e:
                text = tok.apply_chat_template(
                    CONVERSATIONS[e["conversation"]], chat_template=entry["source"], tokenize=False,
                    tools=TOOLS if e["tools"] else None, add_generation_prompt=e["add_generation_prompt"], **e["kwargs"])
                assert text == e["text"], (name, e["conversation"])
                checked += 1
    return checked


def make():
    from transformers.utils import chat_template_utils

    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return NOW

    chat_template_utils.datetime = Fixed
    OUT.mkdir(parents=True, exist_ok=True)
    wheel = pathlib.Path(importlib.util.find_spec("trl").submodule_search_locations[0]) / "chat_templates"
    templates = {}
    for name, tokens in FAMILIES.items():
        (OUT / f"{name}.jinja").write_bytes((wheel / f"{name}.jinja").read_bytes())
        templates[name] = {"special_tokens": tokens, "source": (wheel / f"{name}.jinja").read_text(encoding="utf-8")}
    for name, (tokens, text) in OWN.items():
        (OUT / f"{name}.jinja").write_text(text, encoding="utf-8")
        templates[name] = {"special_tokens": tokens, "source": text}
    shutil.copyfile(next((wheel.parent.parent).glob("trl-*.dist-info")) / "licenses" / "LICENSE", OUT / "LICENSE-APACHE")

    expected = []
    for name, entry in templates.items():
        source, tokens = entry["source"], entry["special_tokens"]
        runs = []
        for conv in CONVERSATIONS:
            with_tools = conv in WITH_TOOLS and "tools" in source
            if not conv.startswith("tool_call") or "tool_calls" in source:
                runs.append((conv, with_tools, False, {}))
            if conv in PROMPTED and (not with_tools or "tool_calls" in source):
                runs.append((conv, with_tools, True, {}))
            if with_tools and not conv.startswith("tool_call"):
                runs.append((conv, False, False, {}))
        for conv, extra in EXTRA:
            if next(iter(extra)) in source and (not conv.startswith("tool_call") or "tool_calls" in source):
                runs.append((conv, conv.startswith("tool_call"), conv == "no_system", extra))
        for conv, with_tools, prompt, extra in runs:
            got = render(source, tokens, CONVERSATIONS[conv], TOOLS if with_tools else None, prompt, extra)
            expected.append({"template": name, "conversation": conv, "tools": with_tools,
                             "add_generation_prompt": prompt, "kwargs": extra, **got})
    checked = check_against_tokenizer(expected, templates)
    doc = {"now": NOW.isoformat(), "versions": versions(), "tools": TOOLS, "conversations": CONVERSATIONS,
           "templates": {n: {"file": f"{n}.jinja", "special_tokens": t["special_tokens"]} for n, t in templates.items()},
           "expected": expected}
    size = write_json(OUT / "expected.json", doc)
    errors = [e for e in expected if "error" in e]
    print(f"templates: {len(templates)} templates, {len(expected)} renderings of which {len(errors)} refusals "
          f"({sum(e['error_kind'] == 'raise_exception' for e in errors)} by raise_exception), "
          f"{checked} compared with the tokenizer, {size} bytes")

    out = []
    for name, source, variables in SNIPPETS:
        try:
            got = {"text": chat_template_utils._compile_jinja_template(source).render(**variables)}
        except Exception as e:
            got = {"error": str(e), "error_kind": type(e).__name__}
        out.append({"name": name, "template": source, "variables": variables, **got})
    write_json(OUT / "snippets.json", {"now": NOW.isoformat(), "snippets": out}, indent=1)
    print(f"snippets: {len(out)}")
    for s in out:
        print("  ", s["name"], json.dumps(s.get("text", s.get("error_kind", "") + ": " + s.get("error", "")), ensure_ascii=False)[:160])
