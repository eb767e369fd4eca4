"""A Trainer whose `push_to_hub` publishes encoders, and nothing else of a run."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from ssl_views.card_facts import CardDetails
from ssl_views.evaluation.history import RunHistory
from ssl_views.export import export_encoder
from ssl_views.hardware import describe_hardware
from ssl_views.hub import Published, PublishError, prepare_repository, publish_encoder
from ssl_views.watched_trainer import WatchedTrainer

logger = logging.get_logger(__name__)


class PublishingTrainer(WatchedTrainer):
    """Publishes the encoder where the stock Trainer would upload the output folder.

    With `args.push_to_hub`, encoders go to `args.hub_model_id`: with every checkpoint
    (`args.hub_strategy="every_save"`), beside the training and without disturbing it, and when
    `save_model` is called at the end. The repository is made, and the login checked, at the start.
    """

    hub_model_id: str | None
    _pushing: Future[Published] | None = None
    _publisher: ThreadPoolExecutor | None = None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Check the login and make the repository, before training has cost anything.

        Raises:
            PublishError: if one of them fails.
        """
        if token is not None:
            raise ValueError(
                "token must be left out; the login of the Hub is used. Log in with `hf auth "
                "login`, or set HF_TOKEN."
            )
        if self.is_world_process_zero():
            wanted = self.args.hub_private_repo if private is None else private
            self.hub_model_id = prepare_repository(self._repository(), private=bool(wanted))

    def push_to_hub(
        self, commit_message: str = "End of training", *, details: CardDetails | None = None
    ) -> Published | None:
        """Publish the encoder as it is now, and verify it.

        Args:
            commit_message: of the commit.
            details: what the card says beyond what the run knows: licence, data.

        Returns:
            What was published; None on other processes than the first.

        Raises:
            PublishError: if the Hub does not have it; the run itself is not touched.
        """
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        with TemporaryDirectory() as folder:
            return self._publish_from(self._export_to(folder, details), commit_message)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save weights and configuration; a call of yours then publishes, where `args` say so."""
        super().save_model(output_dir, _internal_call=True)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub()

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Publish the encoder of this step, beside the training."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        busy = self._pushing is not None and not self._pushing.done()
        if busy and not self.args.hub_always_push:
            return  # the next checkpoint, or the end, publishes a better one
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        aside = TemporaryDirectory()
        step = self.state.global_step
        try:
            encoder = self._export_to(aside.name, None)
        except (OSError, SafetensorError, ValueError) as error:
            aside.cleanup()
            logger.warning("The encoder of step %d is not published: %s", step, error)
            return
        if self._publisher is None:
            self._publisher = ThreadPoolExecutor(max_workers=1)
        message = f"Training in progress, step {step}"
        self._pushing = self._publisher.submit(self._publish_from, encoder, message)
        self._pushing.add_done_callback(_after_publishing(aside, step))

    def _finish_current_push(self) -> None:
        """Wait for what is being published; if it failed, that has been logged."""
        if self._publisher is None or self._pushing is None:
            return
        self._publisher.shutdown(wait=True)
        error = self._pushing.exception()
        self._publisher = self._pushing = None
        if error is not None and not isinstance(error, PublishError):
            raise error

    def _repository(self) -> str:
        if self.args.hub_model_id is None:
            raise ValueError(
                "an encoder must have a repository to go to; hub_model_id is None. Set "
                "hub_model_id='user/name' in the arguments."
            )
        return self.args.hub_model_id

    def _export_to(self, folder: str, details: CardDetails | None) -> Path:
        history = RunHistory(
            folder=Path(str(self.args.output_dir)),
            state=asdict(self.state),
            record=self._record(),
            evaluation=None,
            hardware=describe_hardware(self.args.world_size, self.args.device),
        )
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        details = details or CardDetails(title=self.hub_model_id or self._repository())
        return export_encoder(model, Path(folder) / "encoder", details=details, history=history)

    def _publish_from(self, encoder: Path, message: str) -> Published:
        return publish_encoder(
            encoder,
            self.hub_model_id or self._repository(),
            private=bool(self.args.hub_private_repo),
            message=message,
            on_event=logger.info,  # a failure in the end is told by PublishError
        )


def _after_publishing(aside: TemporaryDirectory[str], step: int) -> Callable[[Future[Any]], None]:
    """Return what is done when an encoder is published, or is not."""

    def clean_up(future: Future[Any]) -> None:
        aside.cleanup()
        if isinstance(error := future.exception(), PublishError):
            logger.warning(
                "The encoder of step %d is not on the Hub: %s Training goes on.", step, error
            )

    return clean_up
