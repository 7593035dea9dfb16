"""cluster.yaml and the RayJob hold what `ray up` and KubeRay accept, and what these do not look at."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from chexseg_ray.config.parse import load_config, parse_config
from chexseg_ray.plan.demand import demands, refuse_what_is_lacking
from chexseg_ray.study.sources import load_plan

REPOSITORY = Path(__file__).resolve().parent.parent
CLUSTER = REPOSITORY / "cluster.yaml"
RAYJOB = REPOSITORY / "configs" / "kuberay" / "rayjob.yaml"
PAPER = load_config(REPOSITORY / "configs" / "paper.yaml")

# read by Ray's AWS provider
PROVIDER = {
    "type",
    "region",
    "availability_zone",
    "cache_stopped_nodes",
    "use_internal_ips",
    "use_external_head_ip",
    "security_group",
    "key_pair",
    "aws_credentials",
    "cloudwatch",
}
NOT_OF_EC2 = {"SubnetIds"}  # Ray's own, for which it sets SubnetId

# the documented fields of KubeRay's API (ray.io/v1, 1.7)
RAYJOB_FIELDS = {
    "RayJobSpec": (
        "activeDeadlineSeconds backoffLimit rayClusterSpec submitterPodTemplate metadata clusterSelector "
        "submitterConfig managedBy deletionStrategy entrypoint runtimeEnvYAML jobId submissionMode entrypointResources "
        "entrypointNumCpus entrypointNumGpus ttlSecondsAfterFinished preRunningDeadlineSeconds "
        "shutdownAfterJobFinishes suspend"
    ),
    "RayClusterSpec": (
        "upgradeStrategy authOptions suspend managedBy autoscalerOptions headServiceAnnotations "
        "enableInTreeAutoscaling gcsFaultToleranceOptions historyServerOptions networkPolicy tlsOptions headGroupSpec "
        "rayVersion workerGroupSpecs"
    ),
    "HeadGroupSpec": "template headService enableIngress ingressOptions resources labels rayStartParams serviceType",
    "WorkerGroupSpec": (
        "suspend groupName replicas minReplicas maxReplicas idleTimeoutSeconds priority resources labels "
        "rayStartParams template scaleStrategy numOfHosts"
    ),
    "AutoscalerOptions": (
        "resources image imagePullPolicy securityContext idleTimeoutSeconds upscalingMode version env envFrom "
        "volumeMounts command args"
    ),
    "AuthOptions": "mode secretName enableK8sTokenAuth",
}


def cluster_faults(text: str) -> list[str]:
    """What is wrong with a cluster file: Ray's own validation, then what it lets pass."""
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    raw = yaml.safe_load(text)
    faults = [
        f"{name} is missing"
        for name in ("cluster_name", "max_workers", "provider", "available_node_types", "head_node_type")
        if name not in raw
    ]
    if faults:
        return faults
    try:
        validate_config(prepare_config(deepcopy(raw)))
    except (ValidationError, ValueError, AssertionError, KeyError) as error:
        return [f"ray: {str(error).splitlines()[0]}"]
    faults = [f"provider.{name} is unknown" for name in raw["provider"] if name not in PROVIDER]
    most = 0
    for name, kind in raw["available_node_types"].items():
        low, high = kind.get("min_workers", 0), kind.get("max_workers", 0)
        most += 0 if name == raw["head_node_type"] else high
        if not 0 <= low <= high:
            faults.append(f"{name}: min_workers {low}, max_workers {high}")
        if high > raw["max_workers"]:
            faults.append(f"{name}: max_workers {high} is above the cluster's {raw['max_workers']}")
        faults += [f"{name}: {fault}" for fault in ec2_faults(kind["node_config"])]
    if raw["max_workers"] < 0 or raw["max_workers"] > most:
        faults.append(f"max_workers {raw['max_workers']} of node types that allow {most}")
    return faults


def ec2_faults(node_config: dict[str, Any]) -> list[str]:
    """Names and types in a node_config that EC2's RunInstances does not have, by botocore's model of it."""
    from botocore.session import Session
    from botocore.validate import ParamValidator

    shape = Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    settings = {name: value for name, value in node_config.items() if name not in NOT_OF_EC2}
    report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **settings}, shape)
    return [line for line in report.generate_report().splitlines() if line]


def test_the_cluster_file_is_what_ray_up_and_ec2_accept() -> None:
    assert cluster_faults(CLUSTER.read_text()) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("max_workers: 4", "max_workers: -1", "cpu: min_workers 0, max_workers -1"),
        ("max_workers: 8", "max_workers: 40", "gpu: max_workers 40 is above the cluster's 12"),
        ("max_workers: 12", "max_workers: 40", "max_workers 40 of node types that allow 12"),
        ("cluster_name: chexseg-ray\n", "", "cluster_name is missing"),
        (
            "InstanceMarketOptions: {MarketType: spot}",
            "InstanceMarketOptions: {MarketTyp: spot}",
            'Unknown parameter in InstanceMarketOptions: "MarketTyp"',
        ),
        ("MetadataOptions:", "MetadataOption:", 'Unknown parameter in input: "MetadataOption"'),
        ("Encrypted: true", "Encrypted: yes please", "Invalid type for parameter BlockDeviceMappings[0].Ebs.Encrypted"),
        ("use_internal_ips", "use_intrenal_ips", "provider.use_intrenal_ips is unknown"),
        ("idle_timeout_minutes: 10", "idle_timeout_minuets: 10", "ray: "),
        ("head_node_type: head", "head_node_type: haed", "ray: "),
    ],
)
def test_a_mistake_in_a_cluster_file_is_found(old: str, new: str, fault: str) -> None:
    text = CLUSTER.read_text()
    assert old in text
    found = cluster_faults(text.replace(old, new))
    assert any(fault in message for message in found), found


def test_the_cluster_is_as_closed_as_it_says() -> None:
    raw = yaml.safe_load(CLUSTER.read_text())
    kinds = raw["available_node_types"]
    assert kinds["head"]["resources"]["CPU"] == 0, "Ray would detect the head's CPUs, and work there"
    for name, kind in kinds.items():
        node = kind["node_config"]
        assert node["MetadataOptions"]["HttpTokens"] == "required", "IMDSv2"
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])
        assert node["SecurityGroupIds"], "Ray's own group opens port 22 to everyone"
        assert node["IamInstanceProfile"]["Name"].endswith("head" if name == "head" else "worker")
        assert ("InstanceMarketOptions" in node) == (name != "head"), "spot workers, a head on demand"
        assert kind.get("min_workers", 0) == 0
        assert raw["auth"]["ssh_private_key"].endswith(f"/{node['KeyName']}.pem"), (
            "Ray would make a key pair of its own"
        )
    assert re.search(r"@sha256:[0-9a-f]{64}$", raw["docker"]["image"])
    assert "-e NVIDIA_VISIBLE_DEVICES=all" in raw["docker"]["run_options"], "the image is not one of NVIDIA's"
    head, worker = (" ".join(raw[f"{role}_start_ray_commands"]) for role in ("head", "worker"))
    assert "--dashboard-host=127.0.0.1" in head
    assert "0.0.0.0" not in head + worker
    assert "--autoscaling-config" in head, "without it no worker comes"
    options = " ".join(raw["docker"]["run_options"])
    (mounted,) = raw["file_mounts"]
    assert "RAY_AUTH_MODE=token" in options
    assert f"RAY_AUTH_TOKEN_PATH={mounted}/auth_token" in options


def unknown_fields(value: dict[str, Any], kind: str) -> list[str]:
    return [f"{kind}.{name}" for name in value if name not in RAYJOB_FIELDS[kind].split()]


def rayjob_faults(raw: dict[str, Any]) -> list[str]:
    """Fields that KubeRay's documentation does not have, and pod templates that Kubernetes's own models do not."""
    spec = raw["spec"]
    cluster = spec["rayClusterSpec"]
    faults = unknown_fields(spec, "RayJobSpec") + unknown_fields(cluster, "RayClusterSpec")
    faults += unknown_fields(cluster["headGroupSpec"], "HeadGroupSpec")
    faults += unknown_fields(cluster["autoscalerOptions"], "AutoscalerOptions")
    faults += unknown_fields(cluster["authOptions"], "AuthOptions")
    for group in cluster["workerGroupSpecs"]:
        faults += unknown_fields(group, "WorkerGroupSpec")
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        faults += pod_faults(group["template"], "V1PodTemplateSpec")
        faults += [
            f"rayStartParams.{k} is no string" for k, v in group["rayStartParams"].items() if not isinstance(v, str)
        ]
    return faults


def pod_faults(value: Any, kind: str) -> list[str]:
    """Names in a value that the Kubernetes client's model of its type lacks."""
    from kubernetes.client import models

    if kind.lower().startswith("list["):
        return [fault for item in value for fault in pod_faults(item, kind[5:-1])]
    model = getattr(models, kind, None)
    if model is None:  # a plain type, or a free mapping
        return []
    names = {json: (attribute, model.openapi_types[attribute]) for attribute, json in model.attribute_map.items()}
    faults = [f"{kind}.{name}" for name in value if name not in names]
    return faults + [
        fault for name, item in value.items() if name in names for fault in pod_faults(item, names[name][1])
    ]


def test_the_rayjob_has_the_documented_fields_alone() -> None:
    raw = yaml.safe_load(RAYJOB.read_text())
    assert (raw["apiVersion"], raw["kind"]) == ("ray.io/v1", "RayJob")
    assert rayjob_faults(raw) == []
    cluster = raw["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"], "KubeRay refuses token mode without it"
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    account = cluster["headGroupSpec"]["template"]["spec"]["serviceAccountName"]
    for group in cluster["workerGroupSpecs"]:
        assert group["template"]["spec"]["serviceAccountName"] != account, "the head's account may make pods"
        assert (group["replicas"], group["minReplicas"]) == (0, 0)
        assert "restartPolicy" not in group["template"]["spec"], "autoscaler v2 wants Never, its default"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("shutdownAfterJobFinishes", "shutdownAfterJobFinish", "RayJobSpec.shutdownAfterJobFinish"),
        ("idleTimeoutSeconds", "idleTimeoutSecond", "AutoscalerOptions.idleTimeoutSecond"),
        ("maxReplicas", "maxReplica", "WorkerGroupSpec.maxReplica"),
        ("nodeSelector", "nodeSelectors", "V1PodSpec.nodeSelectors"),
        ("workingDir", "workdir", "V1Container.workdir"),
        ('"0"', "0", "rayStartParams.num-cpus is no string"),
    ],
)
def test_a_mistake_in_the_rayjob_is_found(old: str, new: str, fault: str) -> None:
    text = RAYJOB.read_text()
    assert old in text
    assert fault in rayjob_faults(yaml.safe_load(text.replace(old, new)))


def test_the_rayjob_says_what_its_groups_add_and_the_paper_fits_on_both_clusters() -> None:
    spec = yaml.safe_load(RAYJOB.read_text())["spec"]
    overrides = re.findall(r"'(compute\.autoscaling=[^']*)'", spec["entrypoint"])
    config = parse_config((REPOSITORY / "configs" / "paper.yaml").read_text(), overrides)
    said = [(kind.num_cpus, kind.num_gpus, kind.max_nodes) for kind in config.compute.autoscaling]
    groups = []
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        groups.append((float(limits["cpu"]), float(limits.get("nvidia.com/gpu", 0)), group["maxReplicas"]))
    assert said == groups
    wanted = demands(PAPER, load_plan(PAPER)[0])
    pods = [{"CPU": cpus, "GPU": gpus} for cpus, gpus, most in said for _ in range(most)]
    refuse_what_is_lacking(wanted, [], pods, "the cluster")
    kinds = yaml.safe_load(CLUSTER.read_text())["available_node_types"]
    nodes = [kind["resources"] for kind in kinds.values() for _ in range(kind.get("max_workers", 0))]
    refuse_what_is_lacking(wanted, [], nodes, "the cluster")


def test_the_papers_training_pool_fits_into_the_head_and_a_trials_part_into_a_gpu_node() -> None:
    """A weak image takes its pixels and ten bit-packed masks: those of two methods on the head, of one in a trial.

    The head's object store is as large as both files say, a GPU node's has 30 % of its memory.
    """
    size, pathologies = PAPER.data.image_size, len(PAPER.data.pathologies)
    pixels, masks = size * size, pathologies * size * size / 8
    largest = max(PAPER.sweep.every("weak_n"))
    pool = largest * PAPER.sweep.trials * (pixels + 2 * masks)
    gigabytes = {"m7i.4xlarge": 64e9, "g5.4xlarge": 64e9}
    kinds = yaml.safe_load(CLUSTER.read_text())["available_node_types"]
    head, gpu = (gigabytes[kinds[name]["node_config"]["InstanceType"]] for name in ("head", "gpu"))
    spec = yaml.safe_load(RAYJOB.read_text())["spec"]["rayClusterSpec"]
    pods = {"head": spec["headGroupSpec"], **{group["groupName"]: group for group in spec["workerGroupSpecs"]}}
    limits = {
        name: int(pod["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"].removesuffix("Gi")) * 2**30
        for name, pod in pods.items()
    }
    driver = 2e9 + largest * PAPER.sweep.trials * max(pixels, masks)  # one table at a time, beside the object store
    in_cluster = re.search(r"--object-store-memory=(\d+)", CLUSTER.read_text())
    assert in_cluster is not None
    in_rayjob = int(spec["headGroupSpec"]["rayStartParams"]["object-store-memory"])
    for memory, object_store in ((head, int(in_cluster.group(1))), (limits["head"], in_rayjob)):
        assert pool < object_store
        assert driver + object_store < memory
    for memory in (gpu, limits["gpu"]):
        assert largest * (pixels + masks) < 0.3 * memory
