"""nnU-Net's training for `PEER_MINUTES` of processor time, on one thread."""

import json
import os
import time
from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)


class _Minutes:
    def run_training(self):
        torch.set_num_threads(1)
        self.on_train_start()
        self.network.train()
        steps, start = 0, time.process_time()
        seconds = 60 * float(os.environ["PEER_MINUTES"])
        while (share := (time.process_time() - start) / seconds) < 1:
            for group in self.optimizer.param_groups:
                group["lr"] = self.initial_lr * (1 - share) ** 0.9
            self.train_step(next(self.dataloader_train))
            steps += 1
        folder = Path(self.output_folder)
        (folder / "steps.json").write_text(json.dumps(steps))
        self.save_checkpoint(str(folder / "unfinished.pth"))
        (folder / "unfinished.pth").rename(folder / "checkpoint_final.pth")

    def perform_actual_validation(self, save_probabilities=False):
        pass


class MinutesTrainer(_Minutes, nnUNetTrainer):
    pass


class MinutesTrainerNoMirroring(_Minutes, nnUNetTrainerNoMirroring):
    pass
