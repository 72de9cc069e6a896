"""Handlers of the conformance runner: importing this package registers all of them.

To bring a method in: a file here with `@handler(method, kind)` functions that read every option of
`case.config`, take inputs with `case.input` and hand each result to `case.compare`; an import
below; and its rows in `scope.py` deleted. Weights go through `keras_ssl.converters`, gradients
through `gradients.py`.
"""

from conformance_handlers import barlow as barlow
from conformance_handlers import byol as byol
from conformance_handlers import clip as clip
from conformance_handlers import clip_tokenizer as clip_tokenizer
from conformance_handlers import dino as dino
from conformance_handlers import dinov2 as dinov2
from conformance_handlers import dinov2_arch as dinov2_arch
from conformance_handlers import hf as hf
from conformance_handlers import lightly as lightly
from conformance_handlers import mae_pretrain as mae_pretrain
from conformance_handlers import mae_utils as mae_utils
from conformance_handlers import mae_vit as mae_vit
from conformance_handlers import moco as moco
from conformance_handlers import mocov3 as mocov3
from conformance_handlers import openclip as openclip
from conformance_handlers import simclr as simclr
from conformance_handlers.framework import run as run
