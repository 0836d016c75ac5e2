"""A small disk of a node's own: an ext4 in a file, mounted where its data directory is, in its host alone."""

from .node import Node


def give_small_disk(node: Node, size_bytes: int) -> None:
    """To be called before the node starts. It goes when the host goes, and its loop device with it."""
    image = node.home / "disk"
    with image.open("wb") as file:
        file.truncate(size_bytes)
    node.exec(["mkfs.ext4", "-q", "-m", "0", image])
    node.exec(["mount", "-o", "loop", image, node.datadir])


def fill(node: Node) -> None:
    """Writes until nothing goes in any more, behind the node's back; `make_room` takes it away."""
    node.shell(f"cat /dev/zero > {node.datadir}/.ks/fill 2>/dev/null || true", timeout=120)


def make_room(node: Node) -> None:
    node.exec(["rm", f"{node.datadir}/.ks/fill"])
