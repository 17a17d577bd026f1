package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"platter/image/store"
	"platter/image/store/s3/s3test"
	"platter/image/store/storetest"
)

const partSize = 5 << 20

func TestLargeObjectsGoInParts(t *testing.T) {
	server := s3test.Start(t)
	proxy := server.Proxy(t)
	config := s3test.Config(proxy.URL, "large")
	config.PartSize = partSize
	s := open(t, config)
	for _, n := range []int{partSize - 1, partSize, partSize + 1, 2 * partSize, 2*partSize + 1} {
		p, name := storetest.Bytes(uint64(n), n), fmt.Sprintf("o/%d", n)
		before := len(proxy.Seen())
		if err := s.Put(t.Context(), name, p[:1], p[1:100], nil, p[100:]); err != nil {
			t.Fatal(err)
		}
		requests := strings.Join(proxy.Seen()[before:], "\n")
		if parts, want := strings.Count(requests, "partNumber="), (n+partSize-1)/partSize; parts != want && (parts != 0 || want != 1) {
			t.Errorf("%d bytes went in %d parts, want %d", n, parts, want)
		}
		got, err := s.Get(t.Context(), name, int64(n))
		if err != nil || !bytes.Equal(got, p) {
			t.Errorf("%d bytes: got %d, %v", n, len(got), err)
		}
		if err := s.Put(t.Context(), name, p[:n-1]); !errors.Is(err, store.ErrExists) {
			t.Errorf("second put of %d bytes: got %v, want ErrExists", n, err)
		}
	}
}

func TestRacingPutsOfPartsHaveOneWinner(t *testing.T) {
	server := s3test.Start(t)
	config := server.Config("race")
	config.PartSize = partSize
	s := open(t, config)
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		wg.Go(func() { errs[i] = s.Put(t.Context(), "o", storetest.Bytes(uint64(i), partSize+1+i)) })
	}
	wg.Wait()
	winner := -1
	for i, err := range errs {
		if err == nil && winner >= 0 {
			t.Errorf("puts %d and %d both won", winner, i)
		} else if err == nil {
			winner = i
		} else if !errors.Is(err, store.ErrExists) {
			t.Errorf("put %d: got %v, want ErrExists", i, err)
		}
	}
	if winner < 0 {
		t.Fatal("no put won")
	}
	got, err := s.Get(t.Context(), "o", 1<<30)
	if err != nil || !bytes.Equal(got, storetest.Bytes(uint64(winner), partSize+1+winner)) {
		t.Errorf("got %d bytes that are not the winner's, %v", len(got), err)
	}
}

func TestFaultsOfParts(t *testing.T) {
	server := s3test.Start(t)
	proxy := server.Proxy(t)
	want := storetest.Bytes(1, partSize+1000)
	for i, rule := range []s3test.Rule{
		{Method: "POST", Query: "uploads", Fault: s3test.ErrorAfter},
		{Method: "PUT", Query: "partNumber=2", Fault: s3test.ErrorBefore},
		{Method: "PUT", Query: "partNumber=1", Fault: s3test.FlipRequest},
		{Method: "PUT", Query: "partNumber=2", Fault: s3test.ResetAfter},
		{Method: "POST", Query: "uploadId", Fault: s3test.ErrorBefore},
		{Method: "POST", Query: "uploadId", Fault: s3test.ResetAfter},
		{Method: "POST", Query: "uploadId", Fault: s3test.SentTwice},
		{Method: "POST", Query: "uploadId", Fault: s3test.FalseSuccess},
		{Method: "POST", Query: "uploadId", Fault: s3test.CutAnswer},
	} {
		rule.Nth = 1
		proxy.Heal()
		proxy.Fail(rule)
		config := s3test.Config(proxy.URL, fmt.Sprintf("parts/%d", i))
		config.PartSize, config.Stall = partSize, 5*time.Second
		s := open(t, config)
		err := s.Put(t.Context(), "o", want)
		got, getErr := s.Get(t.Context(), "o", 1<<30)
		if err != nil || getErr != nil || !bytes.Equal(got, want) {
			t.Errorf("%+v: %v; got %d bytes, %v", rule, err, len(got), getErr)
		}
	}
}

func TestAnUploadGivenUpIsEnded(t *testing.T) {
	server := s3test.Start(t)
	proxy := server.Proxy(t)
	config := s3test.Config(proxy.URL, "given-up")
	config.PartSize = partSize
	s := open(t, config)
	ctx, cancel := context.WithCancel(t.Context())
	proxy.Fail(s3test.Rule{Query: "partNumber=2", Fault: s3test.HangBefore})
	time.AfterFunc(time.Second, cancel)
	if err := s.Put(ctx, "o", storetest.Bytes(1, partSize+1)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if seen := strings.Join(proxy.Seen(), "\n"); !strings.Contains(seen, "DELETE /bucket/given-up/o?uploadId=") {
		t.Errorf("the upload was not ended:\n%s", seen)
	}
}
