"""A Trainer whose `push_to_hub` publishes encoders, and nothing else of a run."""

import threading
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from ssl_views.card_facts import CardDetails
from ssl_views.evaluation.history import RunHistory
from ssl_views.export import export_encoder
from ssl_views.hardware import describe_hardware
from ssl_views.hub import Published, PublishError, prepare_repository, publish_encoder
from ssl_views.watched_trainer import WatchedTrainer

logger = logging.get_logger(__name__)

_LONGEST_WAIT = 300.0  # seconds at the end of training; below the time-out of other processes


class PublishingTrainer(WatchedTrainer):
    """Publishes the encoder where the stock Trainer would upload the output folder.

    With `args.push_to_hub`, encoders go to `args.hub_model_id`: after every checkpoint
    (`args.hub_strategy="every_save"`), in a thread that disturbs no training, and when
    `save_model` is called at the end. While one is under way the next is left out, unless
    `args.hub_always_push` waits for it. The repository is made, and the login checked, at the
    start.
    """

    hub_model_id: str | None
    _pushing: threading.Thread | None = None

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
        self._wait_for_push(None)
        self._repository()
        with TemporaryDirectory() as folder:
            try:
                encoder = self._export_to(folder, details)
            except (OSError, SafetensorError, ValueError) as error:
                raise PublishError(
                    f"the encoder must be exported to be published; it could not be: {error} "
                    "Nothing was published."
                ) from error
            return self._publish_encoder(encoder, commit_message)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save weights and configuration; a call of yours then publishes, where `args` say so."""
        super().save_model(output_dir, _internal_call=True)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub()

    def _save_checkpoint(self, model: nn.Module, trial: Any, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint, and when it is there publish the encoder of this step."""
        super()._save_checkpoint(model, trial, *args, **kwargs)
        wanted = self.args.push_to_hub and self.args.hub_strategy == HubStrategy.EVERY_SAVE
        if wanted and self.is_world_process_zero() and not self._termination.stopping:
            self._start_push()

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Do nothing: the checkpoint is not in its place yet, see `_save_checkpoint`."""

    def _start_push(self) -> None:
        if self._pushing is not None and self._pushing.is_alive():
            if not self.args.hub_always_push:
                return  # the next checkpoint, or the end, publishes a better one
            self._pushing.join()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        aside, step = TemporaryDirectory(), self.state.global_step
        try:
            # Copied and checked here: the weights change, and a check draws random numbers.
            encoder = self._export_to(aside.name, None)
            # A daemon, so that a Hub that does not answer keeps no process from its end.
            self._pushing = threading.Thread(
                target=self._push_beside, args=(encoder, step, aside), daemon=True
            )
            self._pushing.start()
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            aside.cleanup()
            logger.warning("The encoder of step %d is not published: %s", step, error)

    def _push_beside(self, encoder: Path, step: int, aside: TemporaryDirectory[str]) -> None:
        with aside:
            try:
                self._publish_encoder(encoder, f"Training in progress, step {step}")
            except (PublishError, OSError, ValueError) as error:
                logger.warning(
                    "The encoder of step %d is not on the Hub: %s Training goes on.", step, error
                )

    def _finish_current_push(self) -> None:
        """Wait at the end of training for what is being published, but not for ever."""
        self._wait_for_push(_LONGEST_WAIT)
        if self._pushing is not None and self._pushing.is_alive():
            logger.warning("An encoder is still being published; the end of the process stops it.")

    def _wait_for_push(self, seconds: float | None) -> None:
        if self._pushing is not None:
            self._pushing.join(seconds)

    def _repository(self) -> str:
        if self.args.hub_model_id is None:
            raise ValueError(
                "an encoder must have a repository to go to; hub_model_id is None. Set "
                "hub_model_id='user/name' in the arguments."
            )
        return self.hub_model_id or self.args.hub_model_id

    def _export_to(self, folder: str, details: CardDetails | None) -> Path:
        is_best = self.args.load_best_model_at_end and not self.is_in_train
        history = RunHistory(
            folder=Path(str(self.args.output_dir)),
            state=asdict(self.state),
            record=self._record(),
            evaluation=None,
            hardware=describe_hardware(self.args.world_size, self.args.device),
            weights_step=self.state.best_global_step if is_best else None,
        )
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        details = details or CardDetails()
        details = replace(details, title=details.title or self._repository())
        return export_encoder(model, Path(folder) / "encoder", details=details, history=history)

    def _publish_encoder(self, encoder: Path, message: str) -> Published:
        return publish_encoder(
            encoder,
            self._repository(),
            private=bool(self.args.hub_private_repo),
            message=message,
            check=False,  # `export_encoder` has; see there
            on_event=logger.info,  # a failure in the end is told by PublishError
        )
