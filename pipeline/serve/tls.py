"""TLS of both ports, with certificates that may be renewed while the server runs."""

from __future__ import annotations

import ssl
import threading

import grpc

from pipeline.errors import ConfigError
from pipeline.serve.settings import TlsFiles
from pipeline.terminal import console


class Certificates:
    """The server's certificate, and the authorities for clients' certificates.

    Changed files apply to new connections; open connections keep the old ones.
    """

    def __init__(self, files: TlsFiles) -> None:
        """Read the files.

        Raises:
            ConfigError: one cannot be read, or they do not fit each other.
        """
        self._files = files
        self._lock = threading.Lock()
        self._contents, self._context = self._read()
        # uvicorn keeps its context, but the context may be exchanged at a client's hello.
        self.context = self._context
        self.context.sni_callback = self._choose
        self._given: list[bytes] = self._contents  # handed to gRPC
        self._fault = ""  # that was said

    def refresh(self) -> None:
        """Read the files again; where they are invalid, the old ones stay in use, and a line says why, once."""
        try:
            if [path.read_bytes() for path in self._files.paths] == self._contents:
                self._fault = ""
                return
            contents, context = self._read()
        except (OSError, ConfigError) as err:
            if str(err) != self._fault:
                self._fault = str(err)
                console.warning(f"{err}; the certificate from before stays")
            return
        self._fault = ""
        with self._lock:
            self._contents, self._context = contents, context
        console.step(f"{self._files.certificate}: read again")

    def rpc_credentials(self) -> grpc.ServerCredentials:
        """Return gRPC's credentials, which ask for changes at each connection."""
        return grpc.dynamic_ssl_server_credentials(
            self._rpc_configuration(),
            self._rpc_news,
            require_client_authentication=self._files.client_ca is not None,
        )

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._context

    def _rpc_news(self) -> object:
        if self._given is self._contents:
            return None
        return self._rpc_configuration()

    def _rpc_configuration(self) -> object:
        with self._lock:
            self._given = self._contents
        certificate, key, *client_ca = self._given
        return grpc.ssl_server_certificate_configuration([(key, certificate)], *client_ca)

    def _read(self) -> tuple[list[bytes], ssl.SSLContext]:
        files = self._files
        for path in files.paths:
            if not path.is_file():
                raise ConfigError(f"{path}: no such file; it is to hold a certificate or key in PEM")
        try:
            contents = [path.read_bytes() for path in files.paths]
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.set_alpn_protocols(["http/1.1"])
            context.load_cert_chain(files.certificate, files.key, password=self._no_passphrase)
            if files.client_ca is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(files.client_ca)
            if contents != [path.read_bytes() for path in files.paths]:
                raise ConfigError(f"{files.certificate}: is being written")
        except ssl.SSLError as err:
            names = ", ".join(str(path) for path in files.paths)
            raise ConfigError(f"{names}: not a certificate and its key in PEM ({err.reason or err})") from None
        except OSError as err:
            raise ConfigError(f"{err.filename or files.key}: cannot be read ({err.strerror})") from None
        return contents, context

    def _no_passphrase(self) -> str:
        raise ConfigError(
            f"{self._files.key}: has a passphrase, and nobody is there to type it; give a key without one"
        )
