package cbt
