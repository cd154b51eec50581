"""PRONG: Projected Natural Gradient Descent for PyTorch.

Desjardins, Simonyan, Pascanu and Kavukcuoglu, "Natural Neural Networks", NIPS 2015.
"""

from prong.batch_norm import synchronise_batch_norm as synchronise_batch_norm
from prong.compress import Compression as Compression
from prong.compress import compress as compress
from prong.convert import LayerStatus as LayerStatus
from prong.convert import coverage as coverage
from prong.convert import fold as fold
from prong.convert import whiten as whiten
from prong.diagnostics import Whiteness as Whiteness
from prong.diagnostics import whiteness as whiteness
from prong.fisher import Fisher as Fisher
from prong.fisher import Kronecker as Kronecker
from prong.fisher import exact_fisher as exact_fisher
from prong.fisher import kronecker as kronecker
from prong.gradients import mean_by_parameter as mean_by_parameter
from prong.gradients import sum_by_parameter as sum_by_parameter
from prong.plots import figure2 as figure2
from prong.plots import spectra as spectra
from prong.reparametrizer import Reparametrizer as Reparametrizer
from prong.report import LayerReport as LayerReport
from prong.report import RefreshReport as RefreshReport
from prong.state import merge_moments as merge_moments
from prong.whitened import Whitened as Whitened
