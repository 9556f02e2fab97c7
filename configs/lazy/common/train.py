# What detectron2's tools/lazyconfig_train_net.py expects beside the model, as in its own
# configs/common/train.py.
train = dict(
    output_dir="output",
    # The ImageNet weights the authors started from (torchvision, IMAGENET1K_V1).
    init_checkpoint="https://download.pytorch.org/models/resnet50-0676ba61.pth",
    # 118 287 images make 3 696 iterations an epoch of batch 32.
    max_iter=50 * 3696,
    amp=dict(enabled=False),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=3696, max_to_keep=None),
    eval_period=5 * 3696,
    log_period=20,
    device="cuda",
    seed=42,
)
