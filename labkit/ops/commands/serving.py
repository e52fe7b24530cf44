"""`labkit serve`: a checkpoint behind vLLM's OpenAI server, until Ctrl-C."""

from __future__ import annotations

import argparse

from labkit.ops.commands.command import Command, workspace_option


def _serve_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder, or a name in WORKSPACE/checkpoints/")
    parser.add_argument("--profile", default="", help="whose engine settings count (default: $LABKIT_PROFILE, or tiny)")
    workspace_option(parser)
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1 (default: any free one)")
    parser.add_argument("--eager", action="store_true", help="start at once, without compiling: slower answers")


def _serve(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from labkit.ops.serve import serve_until_stopped
    from labkit.profiles import get_profile
    from labkit.workspace import Workspace, find_workspace

    return serve_until_stopped(
        arguments.checkpoint,
        get_profile(arguments.profile),
        Workspace(find_workspace(arguments.workspace, Path.cwd())),
        port=arguments.port,
        eager=arguments.eager,
        options=arguments.passed_on,
        tell=lambda line: print(line, flush=True),
    )


SERVE = Command("serve a checkpoint on loopback until Ctrl-C", _serve_options, _serve, "vllm serve")
