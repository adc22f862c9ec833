"""Complete optimizers: chains of the transforms, a few lines each, that a user can copy and edit."""

from momentax.optimizers._adamh import adamh as adamh
from momentax.optimizers._adamp import adamp as adamp
from momentax.optimizers._adan import adan as adan
from momentax.optimizers._am_adamw import am_adamw as am_adamw
from momentax.optimizers._am_sgd import am_sgd as am_sgd
from momentax.optimizers._auon import auon as auon
from momentax.optimizers._fismo import fismo as fismo
from momentax.optimizers._hybrid_auon import hybrid_auon as hybrid_auon
from momentax.optimizers._lion_k import lion_k as lion_k
from momentax.optimizers._muon import muon as muon
from momentax.optimizers._muon_bp import muon_bp as muon_bp
from momentax.optimizers._muon_pp import muon_pp as muon_pp
from momentax.optimizers._muonh import muonh as muonh
from momentax.optimizers._namo import namo as namo
from momentax.optimizers._namo_d import namo_d as namo_d
from momentax.optimizers._normuon import normuon as normuon
from momentax.optimizers._sgdp import sgdp as sgdp
from momentax.optimizers._spam import spam as spam
from momentax.optimizers._stable_spam import stable_spam as stable_spam
