"""The section ``checkpoint``: where CRIU and its images are."""

from pathlib import Path

from pydantic import Field

from llmux.config.fields import Directory, Flag, Secret, Section, Text


class ObjectStoreSettings(Section):
    """An S3 bucket that images are copied to and fetched from."""

    endpoint: Text = Field(description="Address of the S3 service, http or https; path style.")
    bucket: Text = Field(description="Name of the bucket.")
    access_key: Secret = Field(description="Access key; ${NAME} takes it from the environment.")
    secret_key: Secret = Field(description="Secret key; ${NAME} takes it from the environment.")
    region: Text = Field(default="us-east-1", description="Region that requests are signed for.")


class CheckpointSettings(Section):
    """The programs and directories that cuda_suspend and checkpoint need."""

    criu_path: Text = Field(default="criu", description="The criu program: a name on PATH or a path.")
    cuda_plugin_dir: Directory = Field(default=Path("/usr/lib/criu/"), description="Directory of criu's CUDA plugin.")
    images_dir: Directory = Field(
        default=Path("/tmp/llmux-checkpoints"), description="Directory of the images: images_dir/MODEL/images."
    )
    cuda_checkpoint_path: Text = Field(
        default="cuda-checkpoint", description="The cuda-checkpoint program: a name on PATH or a path. Not used yet."
    )
    keep_images: Flag = Field(
        default=True, description="Keep images after a restore, and use them instead of a new dump."
    )
    object_store: ObjectStoreSettings | None = Field(default=None, description="Object store for images; absent: none.")
