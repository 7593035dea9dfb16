"""Files of weights that are damaged, or ask for more than they hold: one message, no memory, nothing executed."""

import argparse
import collections
import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable

import pytest
import torch
from pretraining.torch_files import saved

from chexseg_ray.pretraining.checkpoints import read_facts, read_state
from chexseg_ray.pretraining.encoders import build_encoder, check_encoder, load_encoder, read_encoder


def as_safetensors(state: dict[str, torch.Tensor], model: str = "{}") -> bytes:
    from safetensors.torch import save

    return save(state, {"model": model})


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))


def lightning() -> dict[str, object]:
    """What trainers save around a state dict."""
    model = network()
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimiser.step()
    return {
        "epoch": 2,
        "state_dict": model.state_dict(),
        "optimizer_states": [optimiser.state_dict()],
        "lr_schedulers": [{"milestones": collections.Counter([3, 4]), "done": {1, 2}}],
        "hyper_parameters": argparse.Namespace(rate=0.1, sizes=(1, (2, 3))),
        "more": [b"bytes", torch.float32, torch.Size([1, 2]), torch.nn.Parameter(torch.ones(3)), None, True, 2**70],
    }


def fault(data: bytes) -> str:
    """What is wrong with a file, empty if nothing; any error but a ValueError ends the test."""
    try:
        state = read_state(data)
        read_facts(data)
    except ValueError as error:
        return str(error)
    assert all(tensor.numel() < 10_000 for tensor in state.values())
    return ""


def refusal(data: bytes) -> str:
    message = fault(data)
    assert message, "it was read"
    assert "weights_only" not in message
    assert "\n" not in message
    assert len(message) < 300
    return message


def old_file(pickled: bytes) -> bytes:
    """A file of torch before 1.6 around one pickle."""
    head = [pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join(head) + pickled + pickle.dumps([], protocol=2)


def in_zip(pickled: bytes, **entries: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little"}.items():
            archive.writestr(f"archive/{name}", content)
        for key, content in entries.items():
            archive.writestr(f"archive/{key}", content)
    return stream.getvalue()


class Call:
    """Pickled, a call of a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


def calling(function: Callable[..., object], *arguments: object) -> bytes:
    return pickle.dumps({"conv1.weight": Call(function, *arguments)}, protocol=2)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old file"])
def test_what_trainers_save_around_a_state_dict_is_read(new: bool) -> None:
    found, state = read_state(saved(lightning(), new=new)), network().state_dict()
    assert found.keys() == state.keys()
    assert read_state(saved(state, new=new)).keys() == state.keys()
    shared = torch.arange(12.0)
    views = {"a": shared[2:6], "b": shared.reshape(3, 4).T, "c": shared[:0], "d": torch.tensor(3)}
    found = read_state(saved(views, new=new))
    assert all(torch.equal(found[name], tensor) for name, tensor in views.items())


HUGE = 2**32  # floats: 17 GB


@pytest.mark.parametrize(
    "data",
    [
        in_zip(calling(torch.FloatTensor, HUGE)),
        in_zip(calling(torch.UntypedStorage, HUGE)),
        in_zip(calling(bytearray, HUGE)),
        in_zip(calling(torch.empty, HUGE)),
        old_file(calling(torch.FloatTensor, HUGE)),
        in_zip(b"\x80\x02}X\x01\0\0\0wctorch\nTensor\nJ\xff\xff\xff\x7f\x85\x81s."),
    ],
    ids=["FloatTensor", "storage", "bytearray", "empty", "old file", "new object"],
)
def test_a_call_that_allocates_is_refused_by_its_name(data: bytes) -> None:
    assert "save only its state_dict" in refusal(data)


def bent(data: bytes, before: bytes, after: bytes) -> bytes:
    """A zip of torch.save with other bytes in its pickle, and the checksums that fit."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(stream, "w") as out:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith("data.pkl"):
                assert before in content
                content = content.replace(before, after, 1)
            out.writestr(name, content)
    return stream.getvalue()


def test_sizes_are_compared_with_the_file_before_anything_is_made() -> None:
    """A file of 1 kB that asked for 17 GB, by a tensor's size, by a storage's size, and by a stride of 0."""
    before = torch.ones(77)
    size, storage = b"K\x4d\x85", b"K\x4dt"  # (77,), and the 77 behind the device's name
    many = b"\x8a\x05\0\0\0\0\x01"
    for new in (True, False):
        data = saved({"w": before}, new=new)
        change = bent if new else bytes.replace
        assert "larger than its storage" in refusal(change(data, size, many + b"\x85"))
        if new:
            assert "another size than its storage" in refusal(bent(data, storage, many + b"t"))
        else:
            data = data.replace(b"K\x4dN", many + b"N")
            assert "another size" in refusal(data)
    assert "larger than its storage" in refusal(saved({"w": torch.ones(1).expand(1000)}))
    assert "larger than its storage" in refusal(saved({"w": torch.ones(1000).as_strided((900, 900), (1, 0))}))
    assert "no plain tensor" in refusal(saved({"w": torch.ones(9)[:1].expand(4)}))
    whole = saved({"w": before}, new=False)
    for cut in (1, 4, 77 * 4, 77 * 4 + 8):
        refusal(whole[:-cut])


def test_a_zip_that_two_readers_might_read_in_two_ways_is_refused() -> None:
    whole = saved({"w": torch.ones(3)})
    refusal(whole + b"\0")
    refusal(whole[:-2] + b"\x01\0x")
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        for name in archive.namelist():
            out.writestr(name, archive.read(name))
    assert "compressed" in refusal(packed.getvalue())
    assert "TorchScript" in refusal(in_zip(b"\x80\x02}.", **{"constants.pkl": b""}))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.ones(3, dtype=torch.complex64),
        torch.ones(3, device="meta"),
        torch.ones(3, dtype=torch.float8_e4m3fn),
        torch.ones(3, dtype=torch.uint16),
    ],
    ids=["sparse", "complex", "meta", "float8", "uint16"],
)
def test_only_plain_dense_real_tensors_are_weights(tensor: torch.Tensor) -> None:
    assert "dense tensors" in refusal(saved({"w": tensor}))


def test_complex_numbers_in_safetensors_are_refused() -> None:
    assert "no plain tensor of real numbers" in refusal(as_safetensors({"w": torch.ones(3, dtype=torch.complex64)}))


def test_keys_whose_hash_takes_for_ever_are_refused() -> None:
    nested = b"\x80\x02K\x01" + b"".join(b"q%cq%ch%c\x86" % (i, i, i) for i in range(60))
    refusal(in_zip(nested + b"}h\x00K\x01s."))
    key = b"\x80\x02}K\x01" + b"\x85q\x01h\x01\x86" * 60 + b"K\x01s."
    refusal(in_zip(key))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ('{"architecture": 5}', "its architecture is 5"),
        ('{"normalisation": ["imagenet"]}', "its normalisation is"),
        ('{"pathologies": "ab"}', "its pathologies are 'ab'"),
        ('{"pathologies": [1]}', "its pathologies are"),
        ("[]", "no JSON object"),
        ("[" * 5000, "cannot be read"),
        ("{", "cannot be read"),
        (json.dumps({"encoder": {"x" * 10_000: 1}}), "its encoder is"),
    ],
)
def test_the_facts_of_a_record_are_of_their_types(model: str, message: str) -> None:
    assert message in refusal(as_safetensors({"w": torch.ones(1)}, model))


def test_numbers_are_floating_point_or_of_the_networks_own_type() -> None:
    encoder = build_encoder("resnet18")
    good = encoder.state_dict()
    counter, weight = "bn1.num_batches_tracked", "bn1.weight"
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in good.items()}
    load_encoder(encoder, read_encoder(saved(half), encoder, "resnet18").state)
    check_encoder(encoder, good | {weight: good[weight].double(), counter: good[counter].float()})
    for changed, message in (
        ({weight: good[weight].long()}, "bn1.weight is of torch.int64, expected torch.float32"),
        ({weight: good[weight].bool()}, "bn1.weight is of torch.bool"),
        ({counter: good[counter].bool()}, f"{counter} is of torch.bool, expected torch.int64"),
        ({weight: good[weight].double() + 1e300}, "bn1.weight is not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            check_encoder(encoder, good | changed)


def test_a_layer_that_is_there_in_two_spellings_is_refused() -> None:
    state = {"denselayer1.norm.1.weight": torch.ones(1), "denselayer1.norm1.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="in the old and in the new spelling"):
        read_encoder(saved(state), build_encoder("resnet18"), "resnet18")


def test_the_names_of_a_file_are_cut_in_messages() -> None:
    assert "is no name of a weight" in refusal(saved({"x" * 10_000: torch.ones(1)}))
    assert "is no name of a weight" in refusal(saved({5: torch.ones(1)}))
    with pytest.raises(ValueError, match="none of the encoder's") as caught:
        read_encoder(saved({"\n" * 400: torch.ones(1)}), build_encoder("resnet18"), "resnet18")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


_PIECES = (
    b"ctorch\nFloatTensor\n",
    b"cbuiltins\nbytearray\n",
    b"ctorch._utils\n_rebuild_sparse_tensor\n",
    b"ctorch\nSize\n",
    b"J\xff\xff\xff\x7f",
    b"\x8a\x08" + b"\xff" * 7 + b"\0",
    *(bytes([byte]) for byte in b"R\x81b\x86t(Q0}]aus\x85N."),
)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The data with one to eight changes: bytes, bits, cuts, copies, pieces of pickles, and numbers."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        where, kind = rng.randrange(len(out) + 1), rng.randrange(6)
        if kind == 0:
            out[where : where + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            out[where : where + 1] = bytes(byte ^ 1 << rng.randrange(8) for byte in out[where : where + 1])
        elif kind == 2:
            del out[where : where + rng.choice([1, 2, 4, 30])]
        elif kind == 3:
            start = rng.randrange(len(out) + 1)
            out[where:where] = out[start : start + rng.choice([1, 4, 16, 64])]
        elif kind == 4:
            out[where:where] = rng.choice(_PIECES)
        else:
            out[where : where + 4] = struct.pack("<I", rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**30, 255]))
    return bytes(out)


def mutated_zip(data: bytes, rng: random.Random) -> bytes:
    """A zip with a changed pickle, and checksums that fit, so that the change reaches the pickle's reader."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(stream, "w") as out:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith("data.pkl") or rng.random() < 0.05:
                content = mutated(content, rng)
            if rng.random() > 0.02:
                out.writestr(name, content)
    return stream.getvalue()


def test_bent_files_are_read_or_refused_and_take_no_memory() -> None:
    import resource

    state = network().state_dict()
    seeds = [saved(state), saved(lightning()), saved(state, new=False), saved(lightning(), new=False)]
    seeds.append(as_safetensors(dict(state), '{"architecture": "resnet18", "pathologies": ["a"]}'))
    rng = random.Random(15)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(1500):
        seed = rng.choice(seeds)
        data = mutated_zip(seed, rng) if seed.startswith(b"PK") and rng.random() < 0.8 else mutated(seed, rng)
        message = fault(data)
        assert len(message) < 300
        assert "\n" not in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kB"


def test_a_name_that_no_weights_need_is_refused_though_nothing_calls_it() -> None:
    data = saved({"a": torch.ones(2), "b": os.getcwd})
    with pytest.raises(ValueError, match=r"it holds a \w+\.getcwd: save only its state_dict"):
        read_state(data)


@pytest.mark.parametrize("pack", [old_file, in_zip], ids=["old file", "zip"])
def test_a_call_of_what_only_may_be_named_is_refused(pack: Callable[[bytes], bytes]) -> None:
    """A storage's type stands in every file of weights; called with a number, it would allocate."""
    pickled = calling(torch.FloatStorage, 10**13)
    assert refusal(pack(pickled)).endswith("(it calls torch.FloatStorage: save only its state_dict)")
