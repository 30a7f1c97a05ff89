"""Which tokens are padding, end and begin of text, by the files that real checkpoints have."""

import json

import pytest
from tokenizers import processors

from t5x_selfimprove.vocabulary import HuggingFaceVocabulary
from tests.vocabulary import made


@pytest.fixture
def checkpoint(tmp_path, of_family):
    """Writes a family's tokenizer.json and the files given as name -> content; returns the vocabulary."""

    def make(family: str, files: dict[str, dict], **chosen: str) -> HuggingFaceVocabulary:
        (tmp_path / 'tokenizer.json').write_bytes(of_family(family).file.read_bytes())
        for name, content in files.items():
            (tmp_path / f'{name}.json').write_text(json.dumps(content), encoding='utf-8')
        return HuggingFaceVocabulary(str(tmp_path), **chosen)

    return make


def names(vocabulary: HuggingFaceVocabulary) -> tuple[str | None, ...]:
    name = vocabulary._read.tokenizer.id_to_token
    ids = (vocabulary.pad_id, vocabulary.eos_id, vocabulary.bos_id)
    return tuple(None if token is None else name(token) for token in ids)


def test_qwen_has_no_begin_of_text_whatever_the_models_config_says(checkpoint):
    tokenizer = {'add_bos_token': False, 'bos_token': None, 'eos_token': '<|im_end|>', 'pad_token': '<|endoftext|>'}
    model = {'bos_token_id': 3, 'eos_token_id': None, 'pad_token_id': 5}
    assert names(checkpoint('qwen', {'tokenizer_config': tokenizer, 'config': model})) == (
        '<|endoftext|>', '<|im_end|>', None,
    )  # fmt: skip


def test_llama_3_begins_as_its_post_processor_does_and_pads_with_its_end(checkpoint):
    tokenizer = {'bos_token': '<|begin_of_text|>', 'eos_token': '<|eot_id|>'}
    assert names(checkpoint('llama_3', {'tokenizer_config': tokenizer})) == (
        '<|eot_id|>', '<|eot_id|>', '<|begin_of_text|>',
    )  # fmt: skip


def test_mistral_names_tokens_as_objects(checkpoint):
    tokenizer = {'add_bos_token': True, 'bos_token': {'content': '<s>'}, 'eos_token': {'content': '</s>'}}
    assert names(checkpoint('mistral', {'tokenizer_config': tokenizer})) == ('</s>', '</s>', '<s>')


def test_t5_ends_but_does_not_begin(checkpoint):
    named = {'eos_token': {'content': '</s>'}, 'pad_token': '<pad>'}
    assert names(checkpoint('t5', {'special_tokens_map': named})) == ('<pad>', '</s>', None)


def test_ids_of_the_model_where_the_tokenizer_says_nothing(checkpoint):
    generation = {'eos_token_id': [2, 1], 'pad_token_id': -1}
    config = {'eos_token_id': 7, 'pad_token_id': 0}
    found = checkpoint('llama_2', {'generation_config': generation, 'config': config})
    assert names(found) == ('<unk>', '</s>', '<s>')
    assert found.token_bytes()[0] == b''  # as padding, though it is the unknown token too


def test_a_begin_of_text_that_is_not_put_before_texts_is_none(checkpoint):
    named = {'bos_token': '<|im_start|>', 'eos_token': '<|im_end|>'}
    assert names(checkpoint('qwen', {'tokenizer_config': named})) == ('<|im_end|>', '<|im_end|>', None)


def test_tokens_that_the_user_chooses(checkpoint):
    said = {
        'tokenizer_config': {'eos_token': '<eos>', 'bos_token': '<bos>', 'pad_token': '<pad>', 'add_bos_token': True}
    }
    assert names(checkpoint('gemma', said)) == ('<pad>', '<eos>', '<bos>')
    chosen = checkpoint('gemma', said, pad_token='<unk>', eos_token='\n\n\n', bos_token='')
    assert names(chosen) == ('<unk>', '\n\n\n', None)
    assert chosen.token_bytes()[chosen.eos_id] == b''
    assert names(checkpoint('gemma', said, bos_token='<unk>'))[2] == '<unk>'


def ends(vocabulary: HuggingFaceVocabulary) -> tuple[str, ...]:
    return tuple(map(vocabulary._read.tokenizer.id_to_token, vocabulary.eos_ids))


def test_a_chat_model_ends_in_several_ways(checkpoint):
    ids = {token: made.llama_3().token_to_id(token) for token in ('<|eot_id|>', '<|end_of_text|>', '<|end_header_id|>')}
    files = {
        'tokenizer_config': {'eos_token': '<|eot_id|>'},
        'config': {'eos_token_id': ids['<|end_header_id|>']},  # unread: generation_config.json has the word
        'generation_config': {'eos_token_id': [ids['<|end_of_text|>'], ids['<|eot_id|>']]},
    }
    found = checkpoint('llama_3', files)
    assert ends(found) == ('<|eot_id|>', '<|end_of_text|>') and found.eos_ids[0] == found.eos_id
    assert ends(checkpoint('llama_3', files, eos_token='<|end_of_text|>')) == ('<|end_of_text|>', '<|eot_id|>')
    files['generation_config'] = {'eos_token_id': None}
    other = checkpoint('llama_3', files)
    assert ends(other) == ('<|eot_id|>', '<|end_header_id|>')
    assert other.token_bytes() == found.token_bytes() and other.fingerprint() != found.fingerprint()


def test_another_end_of_text_spells_nothing(checkpoint):
    turn = made.gemma().token_to_id('\n\n\n')  # an added token that is text where nothing ends with it
    said = {'tokenizer_config': {'eos_token': '<eos>'}}
    plain = checkpoint('gemma', said)
    assert plain.eos_ids == (plain.eos_id,) and plain.token_bytes()[turn] == b'\n\n\n'
    several = checkpoint('gemma', {**said, 'generation_config': {'eos_token_id': [plain.eos_id, turn]}})
    assert several.eos_ids == (plain.eos_id, turn) and several.token_bytes()[turn] == b''


@pytest.mark.parametrize(
    ('files', 'chosen', 'said'),
    [
        ({}, {}, r'no file beside .*tokenizer\.json names an end-of-text token \(tokenizer_config\.json, .*eos_token'),
        ({'tokenizer_config': {'eos_token': '</x>'}}, {}, r"eos_token in .*_config\.json is '</x>', which is no token"),
        ({'config': {'eos_token_id': 9999}}, {}, r'eos_token_id in .*config\.json is 9999, and no token .* has 9999'),
        ({'config': {'eos_token_id': '2'}}, {}, "config.json is '2', and no token of the vocabulary has '2'; mend"),
        (
            {'tokenizer_config': {'eos_token': '</s>'}, 'generation_config': {'eos_token_id': [2, 9999]}},
            {},
            r'eos_token_id in .*generation_config\.json is \[2, 9999\], and no token .* has 9999; mend the file',
        ),
        (
            {'tokenizer_config': {'eos_token': '</s>'}, 'config': {'eos_token_id': 300}},
            {},
            r"lists token 300 in eos_token_id, which spells '.*': no text could hold it\. Mend the list",
        ),
        ({}, {'eos_token': '</x>'}, "eos_token is '</x>', which is no token of the vocabulary"),
        ({'config': [1]}, {}, 'config.json must hold a JSON object; it holds a list'),
    ],
)
def test_end_of_text_that_cannot_be_found(checkpoint, files, chosen, said):
    with pytest.raises(ValueError, match=said):
        checkpoint('llama_2', files, **chosen).token_bytes()


def test_begin_of_text_that_cannot_be_found(checkpoint, tmp_path):
    said = {'tokenizer_config': {'eos_token': '</s>', 'add_bos_token': True}}
    with pytest.raises(ValueError, match='has add_bos_token, and no file names bos_token'):
        _ = checkpoint('mistral', said).bos_id
    (tmp_path / 'tokenizer_config.json').write_text('{"eos_token": ', encoding='utf-8')
    with pytest.raises(ValueError, match=r'tokenizer_config\.json is no JSON'):
        _ = checkpoint('mistral', {}).bos_id
    tokenizer = made.mistral()
    tokenizer.post_processor = processors.TemplateProcessing('<s> <s> $A', special_tokens=[('<s>', 1)])
    vocabulary = HuggingFaceVocabulary(made.save(tokenizer, tmp_path, eos_token='</s>'))
    with pytest.raises(ValueError, match='puts 2 tokens before a text; choose one: bos_token'):
        _ = vocabulary.bos_id
