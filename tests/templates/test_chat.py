"""Chat templates: the tokens that transformers makes of the same messages, and templates that are refused."""

import datetime
import json

import jax
import pytest
from transformers import PreTrainedTokenizerFast

from t5x_selfimprove.templates import ChatTemplate, Template
from t5x_selfimprove.templates.jinja import render
from t5x_selfimprove.vocabulary import HuggingFaceVocabulary
from tests.templates.batches import questions_of
from tests.vocabulary import made

# In the style of Qwen: a system message of its own, roles on lines of their own, a switch for thinking.
QWEN = """
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- set messages = messages[1:] %}
{%- else %}
    {{- '<|im_start|>system\\nAnswer with care.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role not in ('user', 'assistant') %}
        {{- raise_exception('unknown role ' + message.role) }}
    {%- endif %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
# In the style of Llama 3: begin of text, the day, headers, trimmed contents.
LLAMA_3 = """{{ bos_token }}{% set today = strftime_now('%d %b %Y') %}
{% for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|start_header_id|>system<|end_header_id|>\\n\\nIt is ' + today + '<|eot_id|>' }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}
    {{ message['content'] | trim + '<|eot_id|>' }}
    {%- if loop.index > 5 %}{% break %}{% endif %}
{%- endfor %}
{% generation %}{% endgeneration %}
{% if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
# In the style of Llama 2 and Mistral.
INSTRUCT = """{{ bos_token }}{% for message in messages %}[INST] {{ message.content }} [/INST]{% endfor %}"""
QUESTIONS = ['Why?', 'How many pens are there, 12 or 7?', 'naïve 北京\n\n  x', 'say <|im_end|> </s>']
TODAY = datetime.date.today().isoformat()


def checkpoint(folder, family: str, template: str, **named) -> HuggingFaceVocabulary:
    named = {'eos_token': made.EOS.get(family, '</s>'), 'chat_template': template, **named}
    return HuggingFaceVocabulary(made.save(made.MAKERS[family](), folder, **named))


def theirs(vocabulary: HuggingFaceVocabulary, system: str, message: str, **variables) -> list[int]:
    """The prompt that transformers makes."""
    named = json.loads((vocabulary.file.parent / 'tokenizer_config.json').read_text(encoding='utf-8'))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(vocabulary.file), **named)
    messages = [{'role': 'system', 'content': system}] if system else []
    messages.append({'role': 'user', 'content': message})
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **variables)


def ours(template: ChatTemplate, questions: list[str]) -> list[list[int]]:
    """The same, rendered on device."""
    room = max(len(template.vocabulary.encode(question)) for question in questions)
    prompts = jax.jit(template)(questions_of(template.vocabulary, questions, room))
    prefix = prompts.prefix.tolist()
    return [prefix + row[:length] for row, length in zip(prompts.tokens.tolist(), prompts.length.tolist(), strict=True)]


@pytest.mark.parametrize('system', ['', 'You are terse.\n\nSay <think> first.'])
@pytest.mark.parametrize('variables', [{}, {'enable_thinking': False}, {'enable_thinking': True}])
def test_qwen_style(tmp_path, system, variables):
    vocabulary = checkpoint(tmp_path, 'qwen', QWEN)
    template = ChatTemplate(vocabulary, '{question}\nThink.', system, tuple(variables.items()))
    plain = [question for question in QUESTIONS if '<|im_end|>' not in question]
    assert ours(template, plain) == [theirs(vocabulary, system, f'{one}\nThink.', **variables) for one in plain]


@pytest.mark.parametrize('system', ['', ' You are terse. '])
def test_llama_3_style(tmp_path, system):
    vocabulary = checkpoint(tmp_path, 'llama_3', LLAMA_3, bos_token='<|begin_of_text|>')
    template = ChatTemplate(vocabulary, system=system, date=TODAY)
    assert ours(template, QUESTIONS) == [theirs(vocabulary, system, question) for question in QUESTIONS]
    assert template.before.count(vocabulary.bos_id) == 1


@pytest.mark.parametrize('family', ['llama_2', 'mistral'])
def test_a_vocabulary_that_puts_a_space_before_a_text_puts_no_second_one(tmp_path, family):
    vocabulary = checkpoint(tmp_path, family, INSTRUCT, bos_token='<s>')
    spell = vocabulary.token_bytes()
    (prompt,) = ours(ChatTemplate(vocabulary), ['Why?'])
    shown = '[INST] Why? [/INST]' if family == 'llama_2' else ' Why? '
    assert b''.join(spell[token] for token in prompt).decode().removeprefix(' ') == shown.removeprefix(' ')
    if family == 'llama_2':
        assert prompt == theirs(vocabulary, '', 'Why?')


def test_names_of_special_tokens_in_a_question_are_text(tmp_path):
    vocabulary = checkpoint(tmp_path, 'qwen', QWEN)
    (prompt,) = ours(ChatTemplate(vocabulary), ['say <|im_end|> now'])
    (plain,) = ours(ChatTemplate(vocabulary), ['say it now'])
    assert prompt.count(vocabulary.eos_id) == plain.count(vocabulary.eos_id) == 2


def test_a_template_file_and_a_list_of_templates(tmp_path):
    several = [{'name': 'tool_use', 'template': 'x'}, {'name': 'default', 'template': 'Q {{ messages[0].content }} A'}]
    vocabulary = checkpoint(tmp_path, 'gpt_2', several)
    assert vocabulary.decode(ChatTemplate(vocabulary).before) == 'Q '
    (tmp_path / 'chat_template.jinja').write_text('F {{ messages[0].content }} A', encoding='utf-8')
    assert vocabulary.decode(ChatTemplate(vocabulary).before) == 'F '
    vocabulary = checkpoint(tmp_path / 'other', 'gpt_2', several[:1])
    with pytest.raises(ValueError, match=r"has the chat templates \['tool_use'\] and no default one"):
        ChatTemplate(vocabulary)
    vocabulary = checkpoint(tmp_path / 'none', 'gpt_2', None)
    with pytest.raises(FileNotFoundError, match=r'has no chat template: looked for chat_template\.jinja and'):
        ChatTemplate(vocabulary)


CONTENT = '{{ messages[0].content }}'


@pytest.mark.parametrize(
    ('template', 'fields', 'said'),
    [
        ('Q: A:', {}, 'changes or drops the question'),
        ('{{ messages[0].content | lower }}', {}, 'changes or drops the question'),
        ('{{ messages[0].content | e }}', {}, 'changes or drops the question'),
        ('{{ messages[0].content | tojson }}', {}, 'changes or drops the question'),
        ('{{ messages[0].content.split() | join(" ") }}', {}, 'changes or drops the question'),
        ('{{ messages[0].content[:20] }}', {}, 'changes or drops the question'),
        (CONTENT + CONTENT, {}, 'repeats the question'),
        ('{{ messages[0].content | length }}' + CONTENT, {}, 'puts other text round other questions'),
        ('{{ raise_exception("no system") }}', {}, r'cannot be rendered: no system \(TemplateError\)'),
        ('{{ strftime_now("%d") }}' + CONTENT, {}, "it asks for the day.*set date, such as date = '2025-01-31'"),
        ('{{ 1 + none }}', {}, r'cannot be rendered: .*\(TypeError\)'),
        ('{% if %}', {}, r'cannot be rendered: .*\(TemplateSyntaxError\)'),
        ('{{ messages.append(1) }}', {}, r'cannot be rendered: .*\(SecurityError\)'),
        (CONTENT, {'text': 'no slot'}, 'exactly once; this one 0 times'),
        (CONTENT, {'system': 'Q: {question}'}, r'system holds \{question\}, which belongs in text'),
        (CONTENT, {'date': '31.1.2025'}, "date must be a day such as '2025-01-31'; it is '31.1.2025'"),
    ],
)
def test_what_is_refused(tmp_path, template, fields, said):
    vocabulary = checkpoint(tmp_path, 'gpt_2', template)
    with pytest.raises(ValueError, match=said):
        ChatTemplate(vocabulary, **fields)


def test_rendering_is_that_of_the_makers():
    assert render('  {% if true %}\n  a\n  {% endif %}\nb\n', {}, '') == '  a\nb'
    assert render('{{ {"é<": 1, "a": [true]} | tojson(sort_keys=true) }}', {}, '') == '{"a": [true], "é<": 1}'
    assert render('{{ strftime_now("%d %b %Y") }}', {}, '2025-01-31') == '31 Jan 2025'
    assert render('a {%- generation -%} x {%- endgeneration %} b', {}, '') == 'ax b'
    assert render('{{ missing }}{{ x }}', {'x': 3}, '') == '3'


def test_a_chat_template_is_a_template_and_a_value(tmp_path):
    vocabulary = checkpoint(tmp_path, 'qwen', QWEN)
    template = ChatTemplate(vocabulary, system='a', variables=(('enable_thinking', False),))
    assert isinstance(template, Template)
    assert template == ChatTemplate(vocabulary, system='a', variables=(('enable_thinking', False),))
    assert hash(template) == hash(ChatTemplate(vocabulary, system='a', variables=(('enable_thinking', False),)))
    assert template != ChatTemplate(vocabulary, system='a')
