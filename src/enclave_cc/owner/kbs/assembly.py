"""Puts a KBS together from its directory: the one place that chooses implementations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

from enclave_cc.owner.audit.export import DatabaseSource
from enclave_cc.owner.audit.log import AuditLog
from enclave_cc.owner.kbs import audit_keys, openapi
from enclave_cc.owner.kbs.audit_trail import AuditTrail
from enclave_cc.owner.kbs.broker import KeyBroker
from enclave_cc.owner.kbs.collateral_settings import CollateralSources
from enclave_cc.owner.kbs.config import KbsConfig
from enclave_cc.owner.kbs.decisions import DecisionLog, Log
from enclave_cc.owner.kbs.diagnosis import Diagnosis
from enclave_cc.owner.kbs.directory import KbsDirectory
from enclave_cc.owner.kbs.metrics import TEES, Metrics, SharedSlots
from enclave_cc.owner.kbs.policies import PolicyStore
from enclave_cc.owner.kbs.readiness import Readiness
from enclave_cc.owner.kbs.recordings import Recorder
from enclave_cc.owner.kbs.resource_stores import open_key_source, open_resources
from enclave_cc.owner.kbs.roots import RootStore
from enclave_cc.owner.kbs.routes import Routes
from enclave_cc.owner.kbs.server import KbsServer
from enclave_cc.owner.kbs.session_keys import SessionKeys
from enclave_cc.owner.kbs.sessions import Sessions
from enclave_cc.owner.kbs.tls import make_tls_context
from enclave_cc.owner.kbs.token_keys import TokenKeys, read_key_set
from enclave_cc.owner.kbs.tokens import LEEWAY, TokenIssuer
from enclave_cc.owner.kbs.trusted_issuers import TrustedIssuers
from enclave_cc.owner.kbs.verifiers import make_verifiers
from enclave_cc.owner.page.sessions import PageSessions
from enclave_cc.owner.reference.store import ReferenceStore
from enclave_cc.owner.storage import migration
from enclave_cc.owner.storage.generations import Generations
from enclave_cc.owner.storage.settings import open_database


@contextmanager
def assemble(
    directory: KbsDirectory, config: KbsConfig, *, log_stream: IO[str] | None = None, shared_metrics: SharedSlots | None = None
) -> Iterator[KbsServer]:
    """A server that is ready to start; `shared_metrics`: with its sibling processes.

    Raises `UsageError` for what the directory or the database's schema lacks.
    """
    keys = audit_keys.read(directory.path)
    store_keys = open_key_source(config.resources.key)
    store_keys.check()
    token_keys = TokenKeys(lambda: read_key_set(directory.path), lifetime=config.token_lifetime + LEEWAY)
    gate = config.admin.make_gate()
    context = make_tls_context(str(directory.certificate), str(directory.tls_key), client_ca=config.admin.client_ca)
    with ExitStack() as closing:
        database = open_database(config.database, directory.path)
        closing.callback(database.close)
        migration.check(database)
        log = Log(log_stream)
        trusted_issuers = TrustedIssuers(
            config.trusted_issuers, report=lambda name, why: log.write("issuer-dropped", {"issuer": name, "why": why})
        )
        trail = AuditTrail(AuditLog(database, keys.signer, keys=keys.verifiers, settings=config.audit), log)
        generations = Generations(database)
        roots = RootStore(database, generations=generations)
        references = ReferenceStore(database, generations=generations)
        policies = PolicyStore(database, generations=generations)
        policies.install_defaults()
        collateral = CollateralSources(
            config.collateral, roots, lambda event, where, why: log.write(event, {"where": where, "why": why})
        )
        closing.callback(collateral.close)
        resources = closing.enter_context(open_resources(config.resources, store_keys, database, directory.path)).store
        recorder = Recorder(database, config.recording, report=lambda why: log.write("recordings-lost", {"why": why}))
        closing.callback(recorder.close)
        metrics = Metrics(openapi.list_paths(), {*config.tees, *TEES}, shared=shared_metrics)
        session_keys = SessionKeys(store_keys.read, lifetime=config.session_lifetime)
        broker = KeyBroker(
            sessions=Sessions(database, session_keys, lifetime=config.session_lifetime),
            verifiers=make_verifiers(
                config.tees, config.plugins, roots=roots, collateral=collateral, directory=directory.path, log=log
            ),
            tokens=TokenIssuer(
                token_keys,
                issuer=config.token_issuer,
                lifetime=config.token_lifetime,
                trusted=trusted_issuers,
                rsa1_5=config.rsa1_5,
            ),
            policies=policies,
            references=references,
            resources=resources,
            decisions=DecisionLog(database, log),
            trail=trail,
            recorder=recorder,
            diagnosis=Diagnosis(roots, collateral),
            identities=directory.read_identities(),
            rsa1_5=config.rsa1_5,
            metrics=metrics,
        )
        audit = DatabaseSource(database, trail.log.nodes)
        routes = Routes(
            broker,
            gate,
            resources,
            references,
            policies,
            roots,
            trail,
            audit,
            Readiness(database),
            metrics,
            public_metrics=config.metrics_listen is None,
            page=PageSessions(session_keys, lifetime=config.page_lifetime) if config.page else None,
        )
        trail.start([(state.id, state.version) for state in policies.list() if state.version is not None])
        yield KbsServer(routes, config.limits, context, metrics_listen=config.metrics_listen)
        trail.stop()
