"""Opens a page to draw on: `python -m emnist_jax.demo`.

A network reads what is drawn with mouse, pen or finger, and pictures of a character or of lines. Beside the five most
probable characters, the page shows the image that the network saw, and where it looked. Nothing leaves this computer.
"""

import errno
import ipaddress
import logging
import socket
import threading
import webbrowser

from absl import flags
from rich.console import Console

from emnist_jax import command_line
from emnist_jax.errors import UserError

_NETWORK = command_line.define_network_flags()
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0: other computers can use the page, too")
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen at; 0: any that is free", 0, 65535)
_BROWSER = flags.DEFINE_bool("browser", True, "Open the page in the browser")


def listen(host: str, port: int) -> socket.socket:
    """Takes a port.

    Raises:
      UserError: It is in use, or the host is none of this computer's.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        advice = "pass another --port, or --port=0 for any that is free"
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            advice = "pass an address of this computer as --host"
        reason = error.strerror.partition(" (")[0]  # without the address
        raise UserError(f"cannot listen at {host}, port {port}: {reason}; {advice}") from error


def main() -> None:
    try:
        import waitress
    except ImportError as error:
        raise UserError("waitress is missing, which serves the page; pip install -e '.[demo]'") from error
    if not _HOST.value:
        raise UserError("--host is empty: pass 127.0.0.1, or 0.0.0.0 for other computers, too")
    listener = listen(_HOST.value, _PORT.value)

    from emnist_jax.inference import classifier
    from emnist_jax.serving import server

    network = classifier.load(_NETWORK())
    with Console(stderr=True).status("Compiling the network ..."):
        server.warm_up(network)
    address, port, *_ = listener.getsockname()
    loopback = ipaddress.ip_address(address).is_loopback
    application = server.application(network, {address, _HOST.value.lower(), "localhost"} if loopback else None)
    host = f"[{_HOST.value}]" if ":" in _HOST.value else _HOST.value
    url = f"http://{host}:{port}/"
    print(f"{url} is ready; Ctrl-C ends it", flush=True)
    if _BROWSER.value:
        # A browser in the terminal would keep this thread from answering it.
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    # One thread, so that large pictures wait for each other instead of filling the memory; it would warn of each wait.
    logging.getLogger("waitress.queue").disabled = True
    # What is a little too large is refused by the application, which says why.
    most_bytes = 2 * server.MOST_BYTES
    waitress.create_server(
        application, sockets=[listener], threads=1, max_request_body_size=most_bytes, ident=None
    ).run()


if __name__ == "__main__":
    command_line.run(main, config=None)
