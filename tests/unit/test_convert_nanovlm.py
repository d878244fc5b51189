"""A nanoVLM checkpoint becomes an Idefics3 with the same logits, and a processor with nanoVLM's ids and images."""

import io
import json
from pathlib import Path
from typing import Any

import nanovlm_reference as nano
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import picture
from transformers import AutoModelForImageTextToText, AutoProcessor

from lingu_ray.convert_nanovlm import convert, main
from lingu_ray.corpus.encode import Encoder
from lingu_ray.corpus.images import decode_image
from lingu_ray.corpus.row import Row
from lingu_ray.distill.pair import compare_decoders
from lingu_ray.errors import UserError

SETTINGS, VOCABULARY = nano.SETTINGS, nano.SETTINGS["lm_vocab_size"]
STATES = nano.random_states(SETTINGS)
IMAGE, GLOBAL, FAKE = len(nano.BASE), len(nano.BASE) + 1, VOCABULARY
QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(tmp_path_factory.mktemp("nanovlm"))


def converted(base: Path, **changed: Any) -> Path:
    """A checkpoint with `changed` settings, converted."""
    nano.write_checkpoint(base, SETTINGS | changed, nano.random_states(SETTINGS | changed))
    convert(str(base), base / "out")
    return base / "out"


def logits(folder: Path, ids: list[int], pixels: torch.Tensor | None) -> torch.Tensor:
    """The converted model's logits [T, V] of nanoVLM's vocabulary, for nanoVLM's pixels in [0, 1]."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    vision = {} if pixels is None else {"pixel_values": 2 * pixels[None] - 1}
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), **vision).logits[0]


def smooth_picture(width: int, height: int) -> Image.Image:
    return decode_image(picture(3, (6, 5))).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("grid", [None, (1, 1), (3, 4)])
def test_logits_are_those_of_nanovlm(folder: Path, grid: tuple[int, int] | None):
    """For nanoVLM's own ids and pixels: text, a whole image, tiles with their tokens and the global image."""
    ids = nano.prompt_ids("What is it?", grid)
    count = 0 if grid is None else 1 if grid == (1, 1) else grid[0] * grid[1] + 1
    pixels = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)) if count else None
    expected = nano.logits(STATES, SETTINGS, ids, pixels)
    found = logits(folder, ids, pixels)[:, :VOCABULARY]
    assert expected.std() > 0.5  # far from uniform, so that the comparison means something
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_black_tile_stays(folder: Path):
    """A tile that is 0 everywhere in nanoVLM is not taken for padding."""
    ids = nano.prompt_ids("What?", (1, 2))
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    pixels[1] = 0
    expected = nano.logits(STATES, SETTINGS, ids, pixels)
    torch.testing.assert_close(logits(folder, ids, pixels)[:, :VOCABULARY], expected, rtol=0, atol=1e-4)


def test_new_tokens_are_not_likely(folder: Path):
    """The two tokens that only Idefics3 has are no more likely than the average token."""
    probabilities_TV = logits(folder, nano.prompt_ids("What is it?", None), None).softmax(-1)
    assert probabilities_TV.shape[1] == VOCABULARY + 2
    assert (probabilities_TV[:, VOCABULARY:] <= 1 / VOCABULARY).all()


def test_the_prompt_has_nanovlms_ids(folder: Path):
    """Same ids for text; for images the same tiles, each under its own id, in the order that Idefics3 has."""
    processor = AutoProcessor.from_pretrained(folder)
    text = processor.apply_chat_template([{"role": "user", "content": "What?"}], add_generation_prompt=True)
    assert processor(text=text)["input_ids"][0] == nano.prompt_ids("What?", None)

    text = processor.apply_chat_template(QUESTION, add_generation_prompt=True)
    found = processor(text=text, images=[smooth_picture(100, 75)])["input_ids"][0]
    expected = nano.prompt_ids("What?", (3, 4))
    start = expected.index(GLOBAL)
    whole, tiles = expected[start : start + 5], expected[start + 5 : start + 5 * 13]
    blank_line = nano.BASE.index("ĊĊ")
    assert found == [*expected[:start], *tiles, blank_line, *whole, FAKE, *expected[start + 5 * 13 :]]


def test_a_whole_image_has_nanovlms_ids(tmp_path: Path):
    """An image of one tile: nanoVLM's ids, and one `<fake_token_around_image>` after it."""
    processor = AutoProcessor.from_pretrained(converted(tmp_path, resize_to_max_side_len=False))
    text = processor.apply_chat_template(QUESTION, add_generation_prompt=True)
    encoded = processor(text=text, images=[smooth_picture(30, 20)], return_tensors="pt")
    expected = nano.prompt_ids("What?", (1, 1))
    after = len(expected) - expected[::-1].index(IMAGE)
    assert encoded["input_ids"][0].tolist() == [*expected[:after], FAKE, *expected[after:]]
    assert encoded["pixel_values"].shape == (1, 1, 3, 32, 32)


def test_several_images_are_numbered_as_in_nanovlm(folder: Path):
    """`<image: 0>` and so on stand before the images of a message that has several."""
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Same?"}]
    text = AutoProcessor.from_pretrained(folder).apply_chat_template([{"role": "user", "content": content}])
    assert text == "<|im_start|>user\n<image: 0><image><image: 1><image>Same?<|im_end|>\n"


def test_tiles_are_cut_as_nanovlm_cuts_them(folder: Path):
    """Same grid, same pixels in the tiles where one resizing suffices; the global image is as near as documented."""
    image = smooth_picture(100, 75)
    expected, grid = nano.tiles_of(image, SETTINGS)
    assert grid == (3, 4)
    encoded = AutoProcessor.from_pretrained(folder).image_processor(image, return_tensors="pt")
    pixels = (encoded["pixel_values"][0] + 1) / 2
    torch.testing.assert_close(pixels[:-1], expected[1:], rtol=0, atol=1e-6)
    assert (pixels[-1] - expected[0]).abs().mean() < 0.02


def test_the_head_may_be_untied(tmp_path: Path):
    """With `lm_tie_weights: false` embedding and head stay two tensors."""
    settings = SETTINGS | {"lm_tie_weights": False}
    embedding_VD = torch.randn(VOCABULARY, 64, generator=torch.Generator().manual_seed(5))
    nano.write_checkpoint(tmp_path, settings, STATES | {"decoder.token_embedding.weight": embedding_VD})
    convert(str(tmp_path), tmp_path / "out")
    ids = nano.prompt_ids("What?", None)
    expected = nano.decode(STATES, settings, embedding_VD[torch.tensor(ids)])
    torch.testing.assert_close(logits(tmp_path / "out", ids, None)[:, :VOCABULARY], expected, rtol=0, atol=1e-4)


def test_the_first_nanovlm_converts(tmp_path: Path):
    """No image token, no splitting, no template: the image stands before the question, and is resized alike."""
    states = nano.random_states(nano.FIRST)
    nano.write_checkpoint(tmp_path, nano.FIRST, states)
    convert(str(tmp_path), tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    image = smooth_picture(90, 40)
    text = processor.apply_chat_template(QUESTION, add_generation_prompt=True)
    assert text == "Question: <image>What? Answer:"

    pixels = (processor.image_processor(image, return_tensors="pt")["pixel_values"][0] + 1) / 2
    resized = image.resize((48, 48), Image.Resampling.BILINEAR)
    expected_pixels = torch.tensor(list(resized.tobytes())).reshape(48, 48, 3).permute(2, 0, 1) / 255
    torch.testing.assert_close(pixels[0], expected_pixels, rtol=0, atol=1e-6)

    question = nano.tokenizer()("What?")["input_ids"]
    embedded = nano.image_embeddings(states, nano.FIRST, pixels)[0]
    embedded = torch.cat([embedded, states["decoder.head.weight"][torch.tensor(question)]])
    expected = nano.decode(states, nano.FIRST, embedded)
    ids = [processor.image_token_id] * 9 + question
    found = logits(tmp_path / "out", ids, pixels)[:, : len(nano.BASE)]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_pair_goes_through_lingu_ray(folder: Path):
    """A row with a tiled image is encoded with as many image tokens as the model fills; the LM fits as teacher."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    compare_decoders(model.config.get_text_config(decoder=True), nano.teacher().config)
    encoder = Encoder(AutoProcessor.from_pretrained(folder), max_length=512)
    messages = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A stop sign."}]
    row = Row("words", 0, messages, [picture(0, (100, 75))], distill=True)
    sample = encoder.encode(row)
    assert len(sample) == encoder.length(row)
    assert sample.visual_T.sum() == 13 * 4
    answer = encoder.tokenizer.decode(sample.input_ids_T[sample.supervised_T])
    assert answer == "A stop sign.<|im_end|>"
    assert model.generation_config.eos_token_id == encoder.end_of_turn_id
    with torch.no_grad():
        assert model(input_ids=sample.input_ids_T[None], **sample.vision).logits.isfinite().all()


def test_dtype_and_command_line(tmp_path: Path):
    """The command writes weights in the dtype asked for, and names the cure instead of a traceback."""
    nano.write_checkpoint(tmp_path, SETTINGS, STATES)
    folders = [str(tmp_path), str(tmp_path / "out")]
    main([*folders, "dtype=bfloat16"])
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16
    with pytest.raises(UserError, match=f"{tmp_path / 'out'} exists; name another folder"):
        main(folders)
    with pytest.raises(UserError, match="tokenizer="):
        main([str(tmp_path), str(tmp_path / "other"), f"tokenizer={tmp_path / 'none'}"])
    assert not (tmp_path / "other").exists()


def test_no_code_of_a_tokenizer_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A checkpoint names its tokenizer: Transformers would ask on the terminal whether to run what comes with it."""
    own, created = tmp_path / "own", tmp_path / "created"
    own.mkdir()
    (own / "code.py").write_text(f"open({str(created)!r}, 'w')\nclass Tokenizer: ...\n")
    named = {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}}
    (own / "tokenizer_config.json").write_text(json.dumps(named))
    nano.write_checkpoint(tmp_path, SETTINGS, STATES)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(UserError, match=r"tokenizer=.*/own: cannot be loaded\. .*custom code"):
        main([str(tmp_path), str(tmp_path / "out"), f"tokenizer={own}"])
    assert not created.exists()


def test_what_is_no_nanovlm_is_refused(tmp_path: Path):
    """A missing folder, another format, another model's configuration: each error says which it is."""
    with pytest.raises(UserError, match="neither a folder nor a model that can be downloaded"):
        convert(str(tmp_path / "none"), tmp_path / "out")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        convert(str(tmp_path), tmp_path / "out")
    save_file(STATES, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"not nanoVLM's; missing: vit_hidden_dim"):
        convert(str(tmp_path), tmp_path / "out")
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="broken"):
        convert(str(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vit_cls_flag": True}, "vit_cls_flag"),
        ({"lm_attn_scaling": 2.0}, "lm_attn_scaling"),
        ({"lm_chat_template": "{{ messages[0]['content'] }}"}, "lm_chat_template must have"),
        ({"lm_vocab_size": VOCABULARY - 1}, "was trained with tokenizer="),
        ({"lm_inter_dim": 128}, "size mismatch"),
        ({"lm_re_base": 10000}, "lm_re_base"),
        ({"lm_n_blocks": 3}, r"Missing: model\.text_model\.layers\.2\..* and 4 more\. Left over: none"),
        ({"vit_n_blocks": 1}, r"Missing: none\. Left over: vision_encoder\.blocks\.1\."),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, changed: dict[str, Any], message: str):
    """What Idefics3 cannot say, and what does not fit the tensors, is an error before anything is written."""
    nano.write_checkpoint(tmp_path, SETTINGS | changed, STATES)
    with pytest.raises(UserError, match=message):
        convert(str(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["MP.proj.weight", "decoder.head.weight", "vision_encoder.blocks.0.attn.qkv_proj.bias"]
)
def test_no_tensor_may_be_missing(tmp_path: Path, name: str):
    """A tensor that is not there is an error that says what is missing, the tied head included."""
    nano.write_checkpoint(tmp_path, SETTINGS, {key: value for key, value in STATES.items() if key != name})
    with pytest.raises(UserError, match=r"Missing: (model\.connector|lm_head|model\.vision_model)"):
        convert(str(tmp_path), tmp_path / "out")


def test_no_tensor_may_be_left_over(tmp_path: Path):
    """A tensor that nanoVLM does not have is an error that names it."""
    nano.write_checkpoint(tmp_path, SETTINGS, STATES | {"MP.norm.weight": torch.ones(4)})
    with pytest.raises(UserError, match=r"Missing: none\. Left over: MP\.norm\.weight"):
        convert(str(tmp_path), tmp_path / "out")
