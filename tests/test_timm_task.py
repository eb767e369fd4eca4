"""timm's own training loop on our objective: weights, checkpoints, EMA, processes and refusals."""

from pathlib import Path

import pytest
import timm
import timm.task
import torch
import torch.distributed as dist
from timm.optim import create_optimizer_v2
from timm.task import TrainingTask
from timm.utils import CheckpointSaver, ModelEmaV3, unwrap_model
from torch.nn.parallel import DistributedDataParallel

from ssl_views import SSLViewsConfig, SSLViewsForPreTraining
from ssl_views.batchnorm import local_batchnorm_layers
from ssl_views.timm_task import MultiViewTask

HAS_HOOKS = hasattr(TrainingTask, "get_checkpoint_state")  # timm 1.0.27
needs_hooks = pytest.mark.skipif(not HAS_HOOKS, reason="this timm asks no task for its state")


def new_model(seed=0, **values):
    torch.manual_seed(seed)
    defaults = {"backbone": "test_resnet", "image_size": 32, "num_channels": 1, "projector_dim": 16}
    return SSLViewsForPreTraining(SSLViewsConfig(**{**defaults, **values}))


def new_task(seed=0, **values):
    return MultiViewTask(new_model(seed, **values))


def batches(number=3, seed=0):
    torch.manual_seed(seed)
    return [(torch.randn(6, 3, 1, 32, 32), torch.zeros(6)) for _ in range(number)]


def new_optimizer(module, opt="adamw"):
    return create_optimizer_v2(module, opt=opt, lr=1e-2, weight_decay=0.05)


def train(task, optimizer, loader, accumulate=1):
    """The shape of `train_one_epoch` in timm's train.py."""
    task.trainable_module.train()
    for index, (views, target) in enumerate(loader, 1):
        loss = task(views, target)["loss"]
        if accumulate > 1:
            loss /= accumulate  # in place, as timm does
        loss.backward()
        if index % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_timms_loop_gives_the_weights_of_the_model_called_directly(accumulate):
    task, model = new_task(), new_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(task, new_optimizer(task.trainable_module), batches(4), accumulate)
    optimizer = new_optimizer(model)
    for index, (views, _) in enumerate(batches(4), 1):
        (model(views).loss / accumulate).backward()
        if index % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    assert_same(task.trainable_module.state_dict(), model.state_dict())
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("loss", ["barlow_twins", "vicreg", "kernel"])
def test_the_result_holds_every_term_and_the_representations(loss):
    task, model = new_task(loss=loss), new_model(loss=loss)
    views, target = batches(1)[0]
    result, expected = task(views, target), model(views)
    assert result.keys() == {"loss", "output", *expected.terms}
    assert "invariance" in result
    assert torch.equal(result["loss"], expected.loss)
    assert [name for name, value in result.items() if value.requires_grad] == ["loss"]
    for name, term in expected.terms.items():
        assert torch.equal(result[name], term)
    result["loss"] /= 2
    assert_same({name: result[name] for name in expected.terms}, expected.terms)
    assert torch.equal(result["output"], expected.representations.transpose(0, 1))
    assert torch.equal(task(views)["output"], result["output"])
    task.eval()
    encoded = task.get_eval_model()(views[:, 1])
    torch.testing.assert_close(task(views)["output"][:, 1], encoded)


def test_a_task_has_the_device_and_dtype_of_its_model():
    task = MultiViewTask(new_model().double())
    assert task.dtype == torch.float64
    assert task.device == torch.device("cpu")
    assert task(batches(1)[0][0].double())["loss"].dtype == torch.float64


def test_saved_by_hand_a_run_resumes_exactly_and_timm_loads_its_encoder(tmp_path):
    """What works with every timm."""
    task = new_task()
    optimizer = new_optimizer(task.trainable_module)
    train(task, optimizer, batches())
    state = {
        "state_dict": task.get_eval_model().state_dict(),
        "task_state": task.get_task_state(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, tmp_path / "last.pth.tar")
    encoder = timm.create_model(
        "test_resnet", num_classes=0, in_chans=1, checkpoint_path=str(tmp_path / "last.pth.tar")
    )
    assert_same(encoder.state_dict(), task.get_eval_model().state_dict())

    state = torch.load(tmp_path / "last.pth.tar", weights_only=True)
    resumed = new_task(seed=1)
    resumed.get_eval_model().load_state_dict(state["state_dict"])
    resumed.load_task_state(state["task_state"])
    again = new_optimizer(resumed.trainable_module)
    again.load_state_dict(state["optimizer"])
    assert_same(resumed.trainable_module.state_dict(), task.trainable_module.state_dict())
    train(task, optimizer, batches(seed=1))
    train(resumed, again, batches(seed=1))
    assert_same(resumed.trainable_module.state_dict(), task.trainable_module.state_dict())


@needs_hooks
def test_timms_checkpoints_resume_exactly_with_their_ema(tmp_path):
    task = new_task()
    task.setup_ema(decay=0.5)
    optimizer = new_optimizer(task.get_trainable_module())
    train(task, optimizer, batches())
    task.update_ema()
    saver = CheckpointSaver(
        task.get_trainable_module(), optimizer, checkpoint_dir=str(tmp_path), task=task
    )
    saver.save_checkpoint(epoch=0, metric=1.0)
    path = str(tmp_path / "last.pth.tar")

    encoder = timm.create_model("test_resnet", num_classes=0, in_chans=1)
    encoder.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    assert_same(encoder.state_dict(), task.get_eval_model().state_dict())

    resumed = new_task(seed=1)
    again = new_optimizer(resumed.get_trainable_module())
    assert timm.task.resume_task_checkpoint(resumed, path, again) == 1
    resumed.setup_ema(decay=0.5)
    timm.task.load_task_ema_checkpoint(resumed, path)
    for one, optimizer_of in ((task, optimizer), (resumed, again)):
        train(one, optimizer_of, batches(seed=1))
        one.update_ema()
    for ema in (False, True):
        expected = unwrap_model(task.get_trainable_module(ema=ema)).state_dict()
        assert_same(unwrap_model(resumed.get_trainable_module(ema=ema)).state_dict(), expected)


@needs_hooks
def test_ema_follows_backbone_and_projector():
    task = new_task()
    assert task.get_eval_model(ema=True) is None
    assert task.get_task_state(ema=True) == {}
    assert task.get_checkpoint_state(ema=True) == {}
    before = {name: value.clone() for name, value in task.trainable_module.state_dict().items()}
    task.setup_ema(decay=0.75)
    train(task, new_optimizer(task.get_trainable_module()), batches(1))
    task.update_ema()
    after, ema = task.trainable_module.state_dict(), task.trainable_module_ema.module.state_dict()
    for name, value in ema.items():
        if value.is_floating_point():
            expected = before[name].lerp(after[name], 0.25)
            torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
    state = task.get_checkpoint_state(ema=True)
    assert state.keys() == {"state_dict_ema", "task_state_ema"}
    assert_same(state["state_dict_ema"], task.get_eval_model(ema=True).state_dict())
    assert not torch.equal(
        state["task_state_ema"]["projector"]["0.weight"], after["projector.0.weight"]
    )


@needs_hooks
def test_a_compiled_ema_is_the_one_that_the_loop_evaluates():
    task = new_task()
    task.setup_ema(decay=0.0)
    task.compile(backend="eager")  # the order of timm's train.py
    compiled = task.compile_ema(backend="eager")
    assert task.get_eval_model(ema=True) is compiled is not task.get_eval_model()
    with torch.no_grad():
        task.get_eval_model().conv1[0].weight.add_(1)
    task.update_ema()
    states = task.get_checkpoint_state(), task.get_checkpoint_state(ema=True)
    assert_same(states[1]["state_dict_ema"], states[0]["state_dict"])


def test_an_ema_of_the_loop_gives_its_encoder_too():
    """timm 1.0.26 keeps the EMA in the loop."""
    task = new_task()
    ema = ModelEmaV3(task.trainable_module)
    encoder = task.get_eval_model(ema)
    assert encoder is ema.module.ssl_views.backbone
    assert encoder is not task.get_eval_model()
    train(task, new_optimizer(task.trainable_module), batches(1))
    other = new_task(seed=1)
    other.load_task_state(task.get_task_state(ema), module=other.trainable_module)
    assert_same(other.trainable_module.projector.state_dict(), ema.module.projector.state_dict())


@needs_hooks
def test_agc_leaves_out_the_last_layer_of_the_projector():
    task = new_task()
    left_out = {id(p) for p in task.get_clip_parameters()} - {
        id(p) for p in task.get_clip_parameters(exclude_head=True)
    }
    assert left_out == {id(p) for p in task.trainable_module.projector[-1].parameters()}


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("compiled", [False, True])
def test_compiled_and_distributed_states_have_the_names_of_bare_ones(one_process, compiled):
    task = new_task()
    plain, projector = task.get_eval_model(), task.get_task_state()["projector"]
    optimizer = new_optimizer(task.trainable_module, "sgd")
    if compiled:
        assert task.compile(backend="eager", mode=None) is task.get_eval_model()
        assert task.get_eval_model() is not plain
    assert task.prepare_distributed(gradient_as_bucket_view=True) is task
    module = task.trainable_module
    assert isinstance(module, DistributedDataParallel)
    assert module.gradient_as_bucket_view
    assert local_batchnorm_layers(module) == []
    assert (module.module is unwrap_model(module)) is not compiled
    assert unwrap_model(task.get_eval_model()) is plain
    assert task.get_eval_model(module) is plain
    assert_same(task.get_task_state()["projector"], projector)
    if HAS_HOOKS:
        state = task.get_checkpoint_state()
        encoder = timm.create_model("test_resnet", num_classes=0, in_chans=1)
        assert state["state_dict"].keys() == encoder.state_dict().keys()
        new_task(seed=1).load_checkpoint_state(**state)
        with task.no_sync():
            assert not module.require_backward_grad_sync
    if compiled:
        return  # the slow test compiles
    before = projector["0.weight"].clone()
    train(task, optimizer, batches(1))  # the optimizer was made before, as timm does
    assert not torch.equal(task.get_task_state()["projector"]["0.weight"], before)
    reference = new_task()
    train(reference, new_optimizer(reference.trainable_module, "sgd"), batches(1))
    expected = reference.trainable_module.state_dict()
    torch.testing.assert_close(dict(unwrap_model(module).state_dict()), dict(expected))


def steps_over_processes(rank, world_size, backend):
    task = MultiViewTask(new_model().double())
    optimizer = new_optimizer(task.trainable_module, "sgd")
    if backend:
        task.compile(backend=backend)
    if world_size > 1:
        task.prepare_distributed()
    loader = [(views.double().chunk(world_size)[rank], None) for views, _ in batches()]
    train(task, optimizer, loader)
    return dict(unwrap_model(task.trainable_module).state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_two_processes_end_with_the_weights_of_one(backend, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent / "distributed")
    from processes import in_processes

    expected = steps_over_processes(0, 1, None)
    for rank in in_processes(steps_over_processes, 2, tmp_path, backend):
        torch.testing.assert_close(rank, expected, atol=1e-12, rtol=0)


def test_refusals_say_what_to_do():
    with pytest.raises(
        TypeError, match=r"must be SSLViewsForPreTraining; got \w+. Build one from SSLViewsConfig"
    ):
        MultiViewTask(timm.create_model("test_resnet", num_classes=0))
    task = new_task()
    with pytest.raises(ValueError, match=r"S, S\); got \[\(6, 1, 32, 32\)\]. MultiViewColl"):
        task(batches(1)[0][0][:, 0], torch.zeros(6))
    with pytest.raises(
        NotImplementedError, match=r"must get class logits; MultiViewTask has none. Rank checkpoin"
    ):
        task.create_evaluator()
    with pytest.raises(RuntimeError, match=r"must have an EMA to load; it has none. Call setup_em"):
        task.load_task_state(task.get_task_state(), ema=True)
    for state, found in ((None, r"\[\]"), ({"projection": {}}, r"\['projection'\]")):
        with pytest.raises(
            ValueError, match=rf"must hold the projector; got {found}. To start anew from an encod"
        ):
            task.load_task_state(state)
    kept = {name: value.clone() for name, value in task.trainable_module.state_dict().items()}
    task.load_task_state(None, strict=False)
    assert_same(task.trainable_module.state_dict(), kept)
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight"):
        task.load_task_state(new_task(projector_dim=8).get_task_state())
    if HAS_HOOKS:
        with pytest.raises(ValueError, match="must hold the projector"):
            task.load_checkpoint_state(task.get_eval_model().state_dict())
