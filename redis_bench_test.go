package pushlet_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/usual2970/pushlet"
	"github.com/usual2970/pushlet/internal/redistest"
)

// oneMessage is the least that a script can do for one message: the link, the log, and
// sending it.
var oneMessage = redis.NewScript(`
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local prev = newest and newest[1] or '0-0'
local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', 1000, '*', 'p', prev, 'm', ARGV[1])
redis.call('PUBLISH', KEYS[1], id .. ' ' .. prev .. ' ' .. ARGV[1])
return id`)

const redisPublishers, redisTopics = 64, 100

// BenchmarkRedisPublish: 64 goroutines publish messages of 100 bytes to 100 topics and
// wait for each to be acknowledged; against a script call for each message, and against
// 256 of these in one pipeline.
func BenchmarkRedisPublish(b *testing.B) {
	server := redistest.Start(b)
	message := strings.Repeat("x", 100)
	publishers := func(b *testing.B, publish func(topic string) error) {
		before := server.CPU()
		var next atomic.Int64
		var wg sync.WaitGroup
		b.ResetTimer()
		for range redisPublishers {
			wg.Go(func() {
				for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
					if err := publish(fmt.Sprint("topic", i%redisTopics)); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		b.StopTimer()
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "acked/s")
		b.ReportMetric(float64((server.CPU()-before).Nanoseconds())/float64(b.N), "redis-ns/op")
	}
	b.Run("pushlet", func(b *testing.B) {
		p := newPushlet(b, pushlet.WithRedis(server.Client()))
		check(b, p.Start())
		eventually(b, "ready", func() bool { return p.Ready() == nil })
		publishers(b, func(topic string) error { return p.Publish(topic, "message", message) })
	})
	b.Run("script", func(b *testing.B) {
		c := server.Client(func(o *redis.Options) { o.PoolSize = redisPublishers })
		publishers(b, func(topic string) error {
			return oneMessage.Run(context.Background(), c, []string{"script:" + topic}, message).Err()
		})
	})
	b.Run("pipeline", func(b *testing.B) {
		c := server.Client()
		check(b, oneMessage.Load(b.Context(), c).Err())
		before := server.CPU()
		b.ResetTimer()
		for i := 0; i < b.N; i += 256 {
			_, err := c.Pipelined(b.Context(), func(p redis.Pipeliner) error {
				for j := i; j < min(i+256, b.N); j++ {
					oneMessage.EvalSha(b.Context(), p, []string{fmt.Sprint("pipeline:topic", j%redisTopics)}, message)
				}
				return nil
			})
			check(b, err)
		}
		b.StopTimer()
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "acked/s")
		b.ReportMetric(float64((server.CPU()-before).Nanoseconds())/float64(b.N), "redis-ns/op")
	})
}
