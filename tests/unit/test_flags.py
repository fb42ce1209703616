"""The command line: spellings, defaults, bad values, rules between flags."""

import dataclasses
from pathlib import Path

import pytest

from lightvl.errors import StartupError
from lightvl.flag_rules import vision_parallelism
from lightvl.flags import ServerConfig, make_config, parse_args

SPECIFIED = "--port 8080 --tp 1 --mem_fraction 0.8 --trust_remote_code --enable_multimodal"


def test_defaults_are_those_promised() -> None:
    config = parse_args([])
    assert (config.host, config.port, config.tp) == ("127.0.0.1", 8000, 1)
    assert (config.cache_capacity, config.page_size, config.mem_fraction) == (200, 64, 0.9)
    assert (Path(config.model_dir) / "config.json").name == "config.json"
    assert config.enable_multimodal is None
    assert config == make_config()


def test_the_specified_launch_line_parses() -> None:
    config = parse_args([*SPECIFIED.split(), "--model_dir", "/models/internvl"])
    assert (config.port, config.mem_fraction) == (8080, 0.8)
    assert config.trust_remote_code
    assert config.enable_multimodal is True


def test_every_flag_answers_to_both_spellings() -> None:
    for f in dataclasses.fields(ServerConfig):
        kebab = f"--{f.name.replace('_', '-')}"
        for spelling in (f"--{f.name}", kebab):
            with pytest.raises(StartupError) as error:
                parse_args([spelling, "1", "--nonsense"])
            assert spelling not in str(error.value).partition("unrecognized")[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--port x", "--port x: expected an integer >= 0 and <= 65535"),
        ("--port 65536", "--port 65536: expected an integer >= 0 and <= 65535"),
        ("--mem_fraction 1", "--mem_fraction 1: expected a number > 0 and < 1"),
        ("--mem_fraction nan", "--mem_fraction nan: expected a number > 0 and < 1"),
        ("--drain_s inf", "--drain_s inf: expected a number >= 0"),
        ("--page_size 17", "--page_size 17: expected one of 16, 32, 64"),
        ("--data_type int8", "--data_type int8: expected one of bf16, fp16, fp32"),
        ("--visual_infer_batch_size 0", "--visual_infer_batch_size 0: expected an integer >= 1"),
        ("--quant fp8", "--quant fp8: not in this build yet"),
        ("--deterministic", "--deterministic True: not in this build yet"),
        ("--pag 16", "unrecognized arguments: --pag 16"),
        ("--tp 2", "--tp 2: more than one rank is not in this build yet"),
        (
            "--tp 2 --visual_dp 3",
            "--visual_dp 3: visual_dp * visual_tp must equal tp = 2; allowed: "
            "visual_tp 1 with visual_dp 2, visual_tp 2 with visual_dp 1",
        ),
        (
            "--tp 4 --visual_tp 2 --visual_dp 4",
            "--visual_tp 2 --visual_dp 4: visual_dp * visual_tp must equal tp = 4; allowed: "
            "visual_tp 1 with visual_dp 4, visual_tp 2 with visual_dp 2, "
            "visual_tp 4 with visual_dp 1",
        ),
        (
            "--tp 2 --visual_dp 2 --visual_infer_batch_size 3",
            "--visual_infer_batch_size 3: expected a multiple of visual_dp = 2",
        ),
        (
            "--tp 2 --visual_gpu_ids 0",
            "--visual_gpu_ids 0: expected at least 2 different ids",
        ),
        (
            "--media_bytes_in_flight 1000",
            "--media_bytes_in_flight 1000: expected at least 2 * max_body_bytes = 268435456",
        ),
        ("--ssl_keyfile /none", "--ssl_keyfile /none: expected a file that can be read"),
        ("--node_rank 1", "--node_rank 1: expected less than --nnodes 1"),
        (
            "--chunked_prefill_size 8 --disable_chunked_prefill",
            "--chunked_prefill_size and --disable_chunked_prefill exclude each other",
        ),
    ],
)
def test_a_bad_value_is_one_line_with_exit_code_2(arguments: str, message: str) -> None:
    with pytest.raises(StartupError) as error:
        parse_args(arguments.split())
    assert str(error.value) == message
    assert error.value.exit_code == 2


def test_lists_aliases_and_tri_states() -> None:
    config = parse_args(["--eos_id", "1", "2", "--data_type", "bfloat16", "--disable_multimodal"])
    assert config.eos_id == (1, 2)
    assert config.data_type == "bf16"
    assert config.enable_multimodal is False


def test_vision_parallelism_fills_in_what_is_not_given() -> None:
    config = make_config()
    given = dataclasses.replace(config, tp=4)
    assert vision_parallelism(given) == (4, 1)
    assert vision_parallelism(dataclasses.replace(given, visual_dp=2)) == (2, 2)
    assert vision_parallelism(dataclasses.replace(given, visual_tp=1)) == (1, 4)


def test_options_from_python_are_checked_alike() -> None:
    with pytest.raises(StartupError, match="--port True"):
        make_config(port=True)
    with pytest.raises(StartupError, match="unknown option 'colour'"):
        make_config(colour=1)
