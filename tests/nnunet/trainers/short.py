"""nnU-Net's training, cut to one short epoch; found by nnU-Net through `nnUNet_extTrainer`."""

import os
import random

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class ShortTrainer(nnUNetTrainer):
    """An epoch of `CHECK_ITERATIONS` steps on two patches each, the same ones in every training."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cpu")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        torch.set_num_threads(1)
        count = int(os.environ["CHECK_ITERATIONS"])
        self.num_epochs, self.num_iterations_per_epoch = 1, count
        self.num_val_iterations_per_epoch = max(1, count // 3)
        self.configuration_manager.configuration["batch_size"] = 2

    def get_dataloaders(self):
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(0)
        return super().get_dataloaders()

    def perform_actual_validation(self, save_probabilities=False):
        pass
