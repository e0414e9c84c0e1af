"""What torch and Python say of the program itself: models, gradients, files, imports, accounts."""

from trainer.trouble.catalogue.signature import Signature

PROGRAM = (
    Signature(
        "unused_parameters",
        r"Expected to have finished reduction in the prior iteration",
        "parameters of the model took no part in the loss, so their gradients cannot be averaged",
        "freeze them with requires_grad_(False) before DDP, or use them; DDP(find_unused_parameters=True) searches for "
        "them in every step; TORCH_DISTRIBUTED_DEBUG=DETAIL names them",
        "distributed.find_unused_parameters=true, or freeze them with requires_grad_(False)",
    ),
    Signature(
        "graph_changed",
        r"Your training graph has changed in this iteration",
        "the model uses other parameters in this step than in the first, and DDP(static_graph=True) goes by the first",
        "DDP(find_unused_parameters=True) without static_graph, or use all of them in every step, if times 0",
    ),
    Signature(
        "late_gradient",
        r"expected Tensor as element \d+ in argument 2, but got NoneType",
        "a parameter has its first gradient after others have had theirs, for which torch's fused SGD is not made",
        "SGD(..., foreach=True)",
        "`foreach: true` among optim.args takes such parameters",
    ),
    Signature(
        "marked_ready_twice",
        r"Expected to mark a variable ready only once",
        "a parameter was used twice in one backward pass of DDP: shared, or under reentrant checkpointing",
        "checkpoint(..., use_reentrant=False), or DDP(static_graph=True)",
        "checkpoint(..., use_reentrant=False)",
    ),
    Signature(
        "head_shape",
        r"size mismatch for (?P<name>[\w.]+): copying a param with shape torch\.Size\((?P<theirs>\[[\d, ]*\])\) from "
        r"checkpoint, the shape in current model is torch\.Size\((?P<ours>\[[\d, ]*\])\)",
        "the weights are of another model: {name} is {theirs} there and {ours} here, as after a change of the number "
        "of classes",
        "make the model with their number of classes, or leave the head out: drop those keys, load_state_dict(..., "
        "strict=False)",
        "model.weights=FILE takes a head of another number of classes; to go on with this one, run.fresh=true",
    ),
    Signature(
        "state_keys",
        r"Error\(s\) in loading state_dict for (?P<model>\w+):(?s:.*?)(Missing|Unexpected) key\(s\)",
        "the weights are of another model: their names are not those of {model}",
        "names that begin with `module.` were saved from DDP, with `_orig_mod.` from torch.compile: take the inner "
        "model's state_dict",
    ),
    Signature(
        "devices",
        r"Expected all tensors to be on the same device|is not on the expected device|"
        r"Input type \(\S+\) and weight type \(\S+\) should be the same",
        "an operation got tensors of two devices, or of two precisions",
        ".to(device) for every input, and for tensors that the model makes itself (register_buffer moves with it)",
    ),
    Signature(
        "precisions",
        r"must have the same dtype|expected scalar type (?P<one>\w+) but found (?P<other>\w+)",
        "an operation got tensors of two precisions",
        "torch.autocast around the forward pass, or .to(dtype) for what is not of the model's",
        "precision=fp32 tells whether autocast is at fault",
    ),
    Signature(
        "shapes",
        r"mat1 and mat2 shapes cannot be multiplied \((?P<one>\w+) and (?P<other>\w+)\)",
        "a linear layer got another number of features than it was made for ({one} times {other})",
        "the layer's in_features is not what comes in, often after a change of the images' size",
        "the layer's in_features is not what comes in: data.image_size, data.channels, or the layer",
    ),
    Signature(
        "channels",
        r"expected input\[[\d, ]+\] to have (?P<wanted>\d+) channels, but got (?P<got>\d+) channels",
        "the model takes images of {wanted} channels, and got {got}",
        "convert the images (.convert('RGB'), Grayscale), or change the first convolution",
        "data.channels={wanted}",
    ),
    Signature(
        "batch_norm_of_one",
        r"Expected more than 1 value per channel when training",
        "BatchNorm cannot train on one sample",
        "drop_last=True in the DataLoader, or a batch of at least 2 on each worker",
        "data.drop_last=true, or a micro_batch_size that leaves no batch of one",
    ),
    Signature(
        "ragged_batch",
        r"stack expects each tensor to be equal size, but got (?P<one>\[[\d, ]*\]) at entry 0 and "
        r"(?P<other>\[[\d, ]*\])",
        "samples of different shapes cannot be a batch: {one} and {other}",
        "resize or pad in the data set, or a collate_fn",
    ),
    Signature(
        "inplace",
        r"modified by an inplace operation: (?P<what>\[[^\]]*\]\])|a leaf Variable that requires grad is being "
        r"used in an in-place operation",
        "a tensor that backward() needs was overwritten",
        "torch.autograd.set_detect_anomaly(True) names the line; y = y + 1 in place of y += 1, ReLU(inplace=False)",
        "debug=true names the line; y = y + 1 in place of y += 1, ReLU(inplace=False)",
    ),
    Signature(
        "second_backward",
        r"Trying to backward through the graph a second time",
        "backward() came by the same graph twice: mostly a loss or a state that is kept over steps",
        ".detach() what is kept from one step to the next",
    ),
    Signature(
        "no_gradient",
        r"does not require grad and does not have a grad_fn",
        "nothing that the loss depends on can learn: all is frozen, detached, or computed under no_grad()",
        "requires_grad_(True) for what shall learn; no .item(), .detach() or argmax on the way to the loss",
    ),
    Signature(
        "embedding_index",
        r"IndexError: index out of range in self",
        "an index is beyond the table of an embedding",
        "num_embeddings must be larger than the largest index",
    ),
    Signature(
        "lambda",
        r"Can't (pickle|get) local object '?(?P<what>[^']+)|Can't pickle <function (?P<name>\S+)",
        "{what}{name} cannot be sent to another process",
        "a function at the top of a module in place of a lambda or an inner one; or the start method `fork`",
    ),
    Signature(
        "damaged_checkpoint",
        r"PytorchStreamReader failed|failed finding central directory|MetadataIncompleteBuffer|HeaderTooLarge",
        "the file of weights is damaged or incomplete",
        "an older checkpoint, or get it again; check its size",
    ),
    Signature(
        "unsafe_checkpoint",
        r"Weights only load failed(?s:.*?GLOBAL (?P<name>[\w.]+))?",
        "the checkpoint holds Python objects ({name}), which could run code when loaded",
        "torch.serialization.add_safe_globals, for a file that you trust; better: save plain tensors",
        "model.weights= takes a state dict: torch.save(model.state_dict(), FILE) where it was made",
    ),
    Signature(
        "module",
        r"No module named '(?P<name>[^']+)'",
        "Python does not find {name} in this environment",
        "pip install it, or PYTHONPATH=; the working directory counts with -m, the script's own without",
    ),
    Signature(
        "shared_library",
        r"(?P<name>\S+): cannot open shared object file|version `(?P<version>[\w.]+)' not found|undefined symbol: ",
        "a native library is missing or of another version ({name}{version})",
        "`ldd` on the file that the message names; reinstall the package; LD_LIBRARY_PATH may be in the way",
    ),
    Signature(
        "recursion",
        r"^RecursionError",
        "functions called each other without an end",
        "the traceback's last lines repeat: they are the circle",
    ),
    Signature(
        "tracker_login",
        r"No API key configured|API key must have \d+\+? characters|API key verification failed|permission denied "
        r"\(403\)|user is not logged in",
        "the experiment tracker does not know you",
        "`wandb login`, or WANDB_MODE=offline; WANDB_API_KEY must reach the job",
        "`wandb login`, tracking.wandb.mode=offline, or tracking=none",
    ),
)
