#!/usr/bin/env bash
# The README's generated blocks are what the program prints today.
[ "$1" = ./tessera ] || { echo "checked in the release build only"; exit 77; }
exec bash cli/readme.sh --check
