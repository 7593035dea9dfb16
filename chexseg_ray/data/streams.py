"""The streams of random numbers.

Each number is combined with a seed, so that two uses of one seed are independent. Never change a number: that would
change every result that depends on it.
"""

TRIAL_SEED = 101  # model and sampling seed of a trial
WEAK_SUBSET = 202  # weak images of a trial
EXPERT_SUBSET = 303  # expert images of a trial
MIXED_BATCH = 404  # batches of expert and weak images
SHARD_EPOCH = 505  # order of an epoch over image parts
IRNET_CROP = 606  # crops of IRNet's training images
MOCO_VIEW = 707  # MoCo's views and shuffles
PHANTOM_REPORT = 77  # labels that a phantom's report would have
