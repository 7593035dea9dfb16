"""What a terminal is told of a model."""

from chexseg_ray.predict.model import describe


def test_what_is_said_of_a_model_is_bounded() -> None:
    facts = {"expert_masks": 1, "pseudo_masks": 0, "p": 1.0, "data": {}, "encoder_initialisation": "random"}
    short, _ = describe({"record": "a/b", "trained_on": {**facts, "licence": "CC BY 4.0"}})
    assert short.endswith("licence: CC BY 4.0")
    long, _ = describe({"record": "a/b", "trained_on": {**facts, "licence": "x" * 100_000}})
    assert len(long) < 2000
