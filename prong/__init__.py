"""PRONG: Projected Natural Gradient Descent for PyTorch.

Desjardins, Simonyan, Pascanu and Kavukcuoglu, "Natural Neural Networks", NIPS 2015.
"""

from prong.analysis.fisher import Fisher as Fisher
from prong.analysis.fisher import Kronecker as Kronecker
from prong.analysis.fisher import exact_fisher as exact_fisher
from prong.analysis.fisher import kronecker as kronecker
from prong.analysis.plots import figure2 as figure2
from prong.analysis.plots import spectra as spectra
from prong.analysis.whiteness import Whiteness as Whiteness
from prong.analysis.whiteness import whiteness as whiteness
from prong.average import Average as Average
from prong.average import average as average
from prong.check import CheckResult as CheckResult
from prong.check import LayerFinding as LayerFinding
from prong.check import check as check
from prong.convert import LayerStatus as LayerStatus
from prong.convert import coverage as coverage
from prong.convert import fold as fold
from prong.convert import whiten as whiten
from prong.distributed.batch_norm import synchronise_batch_norm as synchronise_batch_norm
from prong.distributed.comm_hooks import mean_by_parameter as mean_by_parameter
from prong.distributed.comm_hooks import sum_by_parameter as sum_by_parameter
from prong.extensions.compress import Compression as Compression
from prong.extensions.compress import compress as compress
from prong.layers.base import Whitened as Whitened
from prong.options import Savings as Savings
from prong.options import TwoSided as TwoSided
from prong.options import Whitening as Whitening
from prong.refresh.refresh_report import LayerReport as LayerReport
from prong.refresh.refresh_report import RefreshReport as RefreshReport
from prong.refresh.saved_state import merge_moments as merge_moments
from prong.reparametrizer import Reparametrizer as Reparametrizer
