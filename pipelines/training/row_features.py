from torch import nn


class RowFeatures(nn.Module):
    pass
