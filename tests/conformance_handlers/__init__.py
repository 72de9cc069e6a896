"""Handlers of the conformance runner: importing this package registers all of them."""

from conformance_handlers import lightly as lightly
from conformance_handlers import mae_pretrain as mae_pretrain
from conformance_handlers import mae_utils as mae_utils
from conformance_handlers import mae_vit as mae_vit
from conformance_handlers import simclr as simclr
from conformance_handlers.framework import run as run
