"""What identity embeddings are trained with: the classes of the training people, and losses of embeddings."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retrieval.network import EMBEDDING
from utils.distributed import sum_over_processes


class Head(nn.Module):
    """The layer of the training people's names, and their centres.

    scale, margin: of the cosine loss (CosFace, arXiv:1801.09414, equation 4); scale 0: a linear layer with bias.
    dropout: share of the embedding that training drops before it. centres: (K, 512), moved by ``centre_loss`` alone.
    """

    def __init__(self, people: int, scale: float, margin: float, dropout: float) -> None:
        super().__init__()
        self.scale, self.margin, self.dropout = scale, margin, nn.Dropout(dropout)
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(people, EMBEDDING)))
        self.bias = None if scale else nn.Parameter(torch.zeros(people))
        self.centres: Tensor
        self.register_buffer("centres", torch.zeros(people, EMBEDDING))

    def forward(self, features_BE: Tensor, labels_B: Tensor) -> Tensor:
        """Logits (B, K); in training the true name's are lowered by the margin."""
        if not self.scale:
            return F.linear(features_BE, self.weight, self.bias)
        cosines_BK = F.linear(F.normalize(features_BE), F.normalize(self.weight))
        margin = self.margin if self.training else 0.0
        return self.scale * (cosines_BK - margin * F.one_hot(labels_B, cosines_BK.shape[1]))


def centre_loss(features_BE: Tensor, labels_B: Tensor, centres_KE: Tensor, alpha: float) -> Tensor:
    """Mean over photos and dimensions of (feature - its person's centre)^2; then moves the centres, in place.

    Each photo moves its person's centre by (1 - alpha) of the difference, and several add up, over all processes. The
    loss knows the centres from before; no gradient reaches them (Wen et al., ECCV 2016, as FaceNet's release has it).
    """
    chosen_BE = centres_KE[labels_B]
    loss = (features_BE - chosen_BE).square().mean()
    with torch.no_grad():
        moves_BE = (1 - alpha) * (features_BE - chosen_BE)
        centres_KE += sum_over_processes(torch.zeros_like(centres_KE).index_add_(0, labels_B, moves_BE.float()))
    return loss


def weight_penalty(module: nn.Module) -> Tensor:
    """Half the sum of squares of all weights of convolutions and linear layers that learn."""
    weights = [p for p in module.parameters() if p.requires_grad and p.ndim >= 2]
    return torch.stack([weight.square().sum() for weight in weights]).sum() / 2
