"""Distributed training: process start, rendezvous, DDP and DeepSpeed engines, sharded state, failure detection."""
